"""The gate that every server passes before it hands out what is cached: keeps proofs, asks when there is none."""

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
    Answer,
    CacheTTL,
    Proof,
    Step,
    next_step,
    standing,
)
from modelimage.errors import AccessDenied, NotFound, Unreachable
from modelimage.registry.credentials import Credential

ANYONE: Final = ""
_MAX_PROOFS: Final = 100_000
Ask = Callable[[Credential | None], Answer]


class Refused(AccessDenied):
    """The owner of a place doesn't let this caller in."""


class PublicPlaces(Protocol):
    """Remembers over restarts which places anyone may read."""

    def public_since(self, place: str) -> float | None:
        """When a place was last found public; None when it wasn't."""

    def note_public(self, place: str, at: float | None) -> None:
        """Remember it, or with None that it no longer is."""


class ForgetfulPlaces:
    """Remembers nothing."""

    def public_since(self, place: str) -> float | None:
        return None

    def note_public(self, place: str, at: float | None) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Admission:
    """A caller that was let in, and the credential to go on with: None where anyone may read."""

    credential: Credential | None

    @property
    def caller(self) -> Caller:
        return Caller(self.credential)


class Authorizer:
    """Lets callers in, or raises Refused, NotFound, Unreachable. Safe for threads; `clock` gives seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        rules: CacheTTL | None = None,
        places: PublicPlaces | None = None,
        key: bytes | None = None,
    ) -> None:
        self._clock, self._rules = clock, rules or CacheTTL()
        self._places = places or ForgetfulPlaces()
        self._key = key or secrets.token_bytes(32)
        self._proofs: OrderedDict[tuple[str, str], Proof] = OrderedDict()
        self._lock = threading.Lock()
        self._asking: dict[tuple[str, str], tuple[threading.Lock, list[None]]] = {}

    def known(self, place: str, caller: Caller) -> Admission | None:
        """What a kept proof allows, without waiting for anything; None where `admit` has to find out."""
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
        """Let a caller read from a place. `ask` puts the question to its owner, with a credential or without."""
        name = self._name(caller)
        step = self._step(place, name, {})
        if step is Step.GRANT:
            return self._admission(place, caller)
        # Fifty pods that start together have one question.
        with self._one_at_a_time((place, name or ANYONE)):
            return self._ask(place, caller, name, ask)

    def note(self, place: str, caller: Caller, *, allowed: bool) -> None:
        """Keep what the owner of a place said of a caller, learned elsewhere."""
        self._keep(place, self._name(caller) or ANYONE, allowed=allowed)

    def _name(self, caller: Caller) -> str | None:
        return fingerprint(self._key, caller.credential) if caller.credential else None

    def _ask(self, place: str, caller: Caller, name: str | None, ask: Ask) -> Admission:
        said: dict[str, Answer] = {}
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

    def _step(self, place: str, name: str | None, said: dict[str, Answer]) -> Step:
        own = None if name is None else self._standing(place, name)
        return next_step(
            self._standing(place, ANYONE), own, said.get(ANYONE), said.get(name) if name else None
        )

    def _answer(self, place: str, name: str, ask: Callable[[], Answer]) -> Answer:
        answer = ask()
        if answer in (Answer.ALLOWED, Answer.REFUSED):
            self._keep(place, name, allowed=answer is Answer.ALLOWED)
        return answer

    def _admission(self, place: str, caller: Caller) -> Admission:
        public = self._standing(place, ANYONE) is AccessState.ALLOWED
        return Admission(None if public else caller.credential)

    def _standing(self, place: str, name: str) -> AccessState:
        with self._lock:
            proof = self._proofs.get((place, name))
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
        if name == ANYONE:
            self._places.note_public(place, now if allowed else None)

    @contextmanager
    def _one_at_a_time(self, key: tuple[str, str]) -> Iterator[None]:
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
