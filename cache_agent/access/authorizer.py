"""Authorizes callers before a server serves cached bytes: caches proofs, requests missing ones upstream."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from cache_agent.access.callers import Caller, fingerprint
from cache_agent.access.decide import (
    AccessState,
    CacheTTL,
    Proof,
    Step,
    UpstreamAnswer,
    next_step,
    standing,
)
from modelimage.errors import AccessDenied, NotFound, Unreachable
from modelimage.registry.credentials import Credential

ANYONE: Final = ""
# Callers choose the credentials, so the number of proofs must be bounded.
_MAX_PROOFS: Final = 100_000
Ask = Callable[[Credential | None], UpstreamAnswer]


class Refused(AccessDenied):
    """The upstream refuses this caller access to a repository."""


class PublicPlaces(Protocol):
    """Remembers across restarts which repositories are public."""

    def public_since(self, place: str) -> float | None:
        """When a repository was last found public; None if it wasn't."""

    def note_public(self, place: str, at: float | None) -> None:
        """Record that a repository is public since `at`, or with None that it no longer is."""


class ForgetfulPlaces:
    """Keeps nothing: after a restart every repository is requested again."""

    def public_since(self, place: str) -> float | None:
        return None

    def note_public(self, place: str, at: float | None) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Admission:
    """A granted access, with the credential for further requests: None for a public repository."""

    credential: Credential | None

    @property
    def caller(self) -> Caller:
        return Caller(self.credential)


class Authorizer:
    """Authorizes callers, or raises Refused, NotFound, Unreachable. Thread-safe; `clock` returns seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        rules: CacheTTL | None = None,
        places: PublicPlaces | None = None,
        key: bytes | None = None,
    ) -> None:
        self._clock, self._rules = clock, rules or CacheTTL()
        self._places = places or ForgetfulPlaces()
        # A new key each start is enough: credentials' proofs are kept in memory only.
        self._key = key or secrets.token_bytes(32)
        self._proofs: OrderedDict[tuple[str, str], Proof] = OrderedDict()
        self._lock = threading.Lock()
        self._asking: dict[tuple[str, str], tuple[threading.Lock, list[None]]] = {}

    def known(self, place: str, caller: Caller) -> Admission | None:
        """Authorize from cached proofs without IO; None if `admit` must request the upstream."""
        name = self._name(caller) or ANYONE
        with self._lock:
            anyone, own = (self._proofs.get((place, each)) for each in (ANYONE, name))
        now = self._clock()
        if standing(anyone, now, self._rules) is AccessState.ALLOWED:
            return Admission(None)
        if standing(own, now, self._rules) is AccessState.ALLOWED:
            return Admission(caller.credential)
        return None

    def admit(self, place: str, caller: Caller, ask: Ask) -> Admission:
        """Authorize a caller for a repository. `ask` requests the upstream, with a credential or anonymously.

        Raises Refused, NotFound, Unreachable.
        """
        name = self._name(caller)
        # Fast path without the lock: with a cached proof nobody waits for another caller's request.
        step = self._step(place, name, {})
        if step is Step.GRANT:
            return self._admission(place, caller)
        # One request for many pods that start together: the others find the proof when the lock is theirs.
        with self._one_at_a_time((place, name or ANYONE)):
            return self._ask(place, caller, name, ask)

    def note(self, place: str, caller: Caller, *, allowed: bool) -> None:
        """Cache the upstream's answer for a caller, learned outside of `admit`."""
        self._keep(place, self._name(caller) or ANYONE, allowed=allowed)

    def _name(self, caller: Caller) -> str | None:
        return fingerprint(self._key, caller.credential) if caller.credential else None

    def _ask(self, place: str, caller: Caller, name: str | None, ask: Ask) -> Admission:
        # Ends: each request adds an answer to `said`, and `next_step` never requests the same one twice.
        said: dict[str, UpstreamAnswer] = {}
        while True:
            match self._step(place, name, said):
                case Step.GRANT:
                    return self._admission(place, caller)
                case Step.ASK_ANONYMOUSLY:
                    said[ANYONE] = self._answer(place, ANYONE, lambda: ask(None))
                case Step.ASK_AS_CALLER if name is not None:
                    said[name] = self._answer(place, name, lambda: ask(caller.credential))
                case Step.ABSENT:
                    raise NotFound(f"{place} has no such thing, or hides it from this caller")
                case Step.UNREACHABLE:
                    raise Unreachable(f"{place} can't be reached to prove access")
                case _:
                    raise Refused(
                        f"no access to {place}",
                        hint="Give a pull secret or token that may read it.",
                    )

    def _step(self, place: str, name: str | None, said: dict[str, UpstreamAnswer]) -> Step:
        own = None if name is None else self._standing(place, name)
        return next_step(
            self._standing(place, ANYONE), own, said.get(ANYONE), said.get(name) if name else None
        )

    def _answer(self, place: str, name: str, ask: Callable[[], UpstreamAnswer]) -> UpstreamAnswer:
        answer = ask()
        # ABSENT and UNREACHABLE aren't kept: neither says anything about access, and both may end at any moment.
        if answer in (UpstreamAnswer.ALLOWED, UpstreamAnswer.REFUSED):
            self._keep(place, name, allowed=answer is UpstreamAnswer.ALLOWED)
        return answer

    def _admission(self, place: str, caller: Caller) -> Admission:
        # A caller's credential isn't sent where the upstream doesn't need it.
        public = self._standing(place, ANYONE) is AccessState.ALLOWED
        return Admission(None if public else caller.credential)

    def _standing(self, place: str, name: str) -> AccessState:
        with self._lock:
            proof = self._proofs.get((place, name))
        # Only anonymous proofs survive a restart: the key of the fingerprints doesn't.
        if proof is None and name == ANYONE:
            since = self._places.public_since(place)
            proof = Proof(allowed=True, at=since) if since is not None else None
        return standing(proof, self._clock(), self._rules)

    def _keep(self, place: str, name: str, *, allowed: bool) -> None:
        now = self._clock()
        with self._lock:
            self._proofs[place, name] = Proof(allowed, now)
            self._proofs.move_to_end((place, name))
            while len(self._proofs) > _MAX_PROOFS:
                self._proofs.popitem(last=False)
        # Outside the lock: it may write to disk.
        if name == ANYONE:
            self._places.note_public(place, now if allowed else None)

    @contextmanager
    def _one_at_a_time(self, key: tuple[str, str]) -> Iterator[None]:
        # Users are counted under `_lock`, so a lock isn't dropped between its lookup and its use.
        with self._lock:
            lock, users = self._asking.setdefault(key, (threading.Lock(), []))
            users.append(None)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users.pop()
                if not users:
                    self._asking.pop(key, None)
