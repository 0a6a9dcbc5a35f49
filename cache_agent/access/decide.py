"""Decides whether a caller may read a repository, from the upstream's earlier answers and their age. Pure.

A repository is one of a registry, or a model of a Hub; its upstream is that registry or Hub. The answer to
an anonymous request holds for every caller; the answer to a credential holds for that credential only. Permissions are
cached for a while, refusals only briefly, since a user who was just given access wants to use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class UpstreamAnswer(Enum):
    """The upstream's answer to an access request."""

    ALLOWED = "allowed"
    REFUSED = "refused"  # 401 or 403
    ABSENT = "absent"  # 404: not there, or hidden from this caller
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Proof:
    """A cached answer: ALLOWED or REFUSED, and when it was given, in seconds."""

    allowed: bool
    at: float


@dataclass(frozen=True, slots=True)
class CacheTTL:
    """How long answers are cached, in seconds: permissions for `lifetime`, refusals for `refusal`.

    `grace`: how much longer a permission holds while the upstream is unreachable: in an outage it can't have been
    revoked.
    """

    lifetime: float = 300.0
    refusal: float = 10.0
    grace: float = 24 * 3600.0


class AccessState(Enum):
    """The validity of a cached answer now."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    LAPSED = "lapsed"  # was allowed; counts only while the upstream is unreachable
    UNKNOWN = "unknown"


def state_of(proof: Proof | None, now: float, rules: CacheTTL) -> AccessState:
    """The validity of a proof at `now`."""
    # A clock that was set back must not extend a proof.
    if proof is None or proof.at > now:
        return AccessState.UNKNOWN
    age = now - proof.at
    if not proof.allowed:
        return AccessState.REFUSED if age < rules.refusal else AccessState.UNKNOWN
    if age < rules.lifetime:
        return AccessState.ALLOWED
    return AccessState.LAPSED if age < rules.lifetime + rules.grace else AccessState.UNKNOWN


class Step(Enum):
    """The next action for one request."""

    GRANT = "grant"
    REFUSE = "refuse"
    ABSENT = "absent"
    UNREACHABLE = "unreachable"
    ASK_ANONYMOUSLY = "ask anonymously"
    ASK_AS_CALLER = "ask as caller"


def next_step(
    anyone: AccessState,
    own: AccessState | None,
    said_anyone: UpstreamAnswer | None,
    said_own: UpstreamAnswer | None,
) -> Step:
    """The next step for a caller's request.

    `anyone` and `own`: validity of the cached proofs; `own` is None for a caller without credentials. `said_*`: the
    upstream's answers during this request. Law: never GRANT unless a cached proof or an answer says allowed.
    """
    if AccessState.ALLOWED in (anyone, own) or UpstreamAnswer.ALLOWED in (said_anyone, said_own):
        return Step.GRANT
    # Anonymously first: a public image then needs no credential, and one answer serves every caller.
    if said_anyone is None and anyone is not AccessState.REFUSED:
        return Step.ASK_ANONYMOUSLY
    # An upstream that just didn't answer isn't tried again: each attempt costs the caller a timeout.
    reachable = said_anyone is not UpstreamAnswer.UNREACHABLE
    if own is not None and said_own is None and own is not AccessState.REFUSED and reachable:
        return Step.ASK_AS_CALLER
    if UpstreamAnswer.UNREACHABLE in (said_anyone, said_own):
        # A refusal of this credential outweighs a lapsed permission: grace is for outages only.
        lapsed = (
            AccessState.LAPSED in (anyone, own)
            and said_own != UpstreamAnswer.REFUSED
            and own is not AccessState.REFUSED
        )
        return Step.GRANT if lapsed else Step.UNREACHABLE
    final = said_anyone if own is None else said_own
    return Step.ABSENT if final is UpstreamAnswer.ABSENT else Step.REFUSE
