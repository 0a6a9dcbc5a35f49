"""May this caller read from this place? Decided from what the place's owner said before, and when. Pure.

A place is a repository of one registry, or a model of one hub. What its owner said of nobody in particular (an
anonymous request) holds for everyone; what it said of a credential holds for that credential only. An answer is
believed for a while; a refusal only briefly, since a user who is given access wants to use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Answer(Enum):
    """What the owner of a place said when asked."""

    ALLOWED = "allowed"
    REFUSED = "refused"  # 401 or 403
    ABSENT = "absent"  # 404: not there, or hidden from this caller
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Proof:
    """An answer that was kept: ALLOWED or REFUSED, and when it was given."""

    allowed: bool
    at: float


@dataclass(frozen=True, slots=True)
class CacheTTL:
    """For how many seconds answers are believed.

    `grace` is how long a permission outlives its `lifetime` while its owner can't be reached: who can't be asked can't
    have taken anything back.
    """

    lifetime: float = 300.0
    refusal: float = 10.0
    grace: float = 24 * 3600.0


class AccessState(Enum):
    """What a kept answer is worth now."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    LAPSED = "lapsed"  # was allowed; counts only while the owner can't be asked
    UNKNOWN = "unknown"


def standing(proof: Proof | None, now: float, rules: CacheTTL) -> AccessState:
    """What a proof is worth at `now`."""
    # A clock that was set back must not make a proof last longer than it would have.
    if proof is None or proof.at > now:
        return AccessState.UNKNOWN
    age = now - proof.at
    if not proof.allowed:
        return AccessState.REFUSED if age < rules.refusal else AccessState.UNKNOWN
    if age < rules.lifetime:
        return AccessState.ALLOWED
    return AccessState.LAPSED if age < rules.lifetime + rules.grace else AccessState.UNKNOWN


class Step(Enum):
    """What to do next about one request."""

    GRANT = "grant"
    REFUSE = "refuse"
    ABSENT = "absent"
    UNREACHABLE = "unreachable"
    ASK_ANONYMOUSLY = "ask anonymously"
    ASK_AS_CALLER = "ask as caller"


def next_step(
    anyone: AccessState,
    own: AccessState | None,
    said_anyone: Answer | None,
    said_own: Answer | None,
) -> Step:
    """The next step for a caller.

    `anyone` and `own` are what kept proofs are worth; `own` is None for a caller without credentials. `said_*` are
    the answers given during this request. Law: never GRANT unless something above says allowed.
    """
    if AccessState.ALLOWED in (anyone, own) or Answer.ALLOWED in (said_anyone, said_own):
        return Step.GRANT
    if said_anyone is None and anyone is not AccessState.REFUSED:
        return Step.ASK_ANONYMOUSLY
    reachable = said_anyone is not Answer.UNREACHABLE
    if own is not None and said_own is None and own is not AccessState.REFUSED and reachable:
        return Step.ASK_AS_CALLER
    if Answer.UNREACHABLE in (said_anyone, said_own):
        lapsed = (
            AccessState.LAPSED in (anyone, own)
            and said_own != Answer.REFUSED
            and own is not AccessState.REFUSED
        )
        return Step.GRANT if lapsed else Step.UNREACHABLE
    final = said_anyone if own is None else said_own
    return Step.ABSENT if final is Answer.ABSENT else Step.REFUSE
