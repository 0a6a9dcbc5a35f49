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
    state_of,
)
from modelimage.errors import AccessDenied, NotFound, Unreachable
from modelimage.registry.credentials import Credential

ANYONE: Final = ""
# Callers choose the credentials, so the number of proofs must be bounded.
_MAX_PROOFS: Final = 100_000
Ask = Callable[[Credential | None], UpstreamAnswer]


class Refused(AccessDenied):
    """The upstream refuses this caller access to a repository."""


class PublicRepositories(Protocol):
    """Remembers across restarts which repositories are public."""

    def public_since(self, repository: str) -> float | None:
        """When a repository was last found public; None if it wasn't."""

    def note_public(self, repository: str, at: float | None) -> None:
        """Record that a repository is public since `at`, or with None that it no longer is."""


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
        public: PublicRepositories | None = None,
        key: bytes | None = None,
    ) -> None:
        self._clock, self._rules = clock, rules or CacheTTL()
        # None: after a restart every repository is requested again.
        self._public = public
        # A new key each start is enough: credentials' proofs are kept in memory only.
        self._key = key or secrets.token_bytes(32)
        self._proofs: OrderedDict[tuple[str, str], Proof] = OrderedDict()
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str], tuple[threading.Lock, list[None]]] = {}

    def known(self, repository: str, caller: Caller) -> Admission | None:
        """Authorize from cached proofs without IO; None if `admit` must request the upstream."""
        name = self._name(caller) or ANYONE
        with self._lock:
            anyone, own = (self._proofs.get((repository, each)) for each in (ANYONE, name))
        now = self._clock()
        if state_of(anyone, now, self._rules) is AccessState.ALLOWED:
            return Admission(None)
        if state_of(own, now, self._rules) is AccessState.ALLOWED:
            return Admission(caller.credential)
        return None

    def admit(self, repository: str, caller: Caller, ask: Ask) -> Admission:
        """Authorize a caller for a repository. `ask` requests the upstream, with a credential or anonymously.

        Raises Refused, NotFound, Unreachable.
        """
        name = self._name(caller)
        # Fast path without the lock: with a cached proof nobody waits for another caller's request.
        step = self._step(repository, name, {})
        if step is Step.GRANT:
            return self._admission(repository, caller)
        # One request for many pods that start together: the others find the proof when the lock is theirs.
        with self._one_at_a_time((repository, name or ANYONE)):
            return self._ask(repository, caller, name, ask)

    def note(self, repository: str, caller: Caller, *, allowed: bool) -> None:
        """Cache the upstream's answer for a caller, learned outside of `admit`."""
        self._keep(repository, self._name(caller) or ANYONE, allowed=allowed)

    def _name(self, caller: Caller) -> str | None:
        return fingerprint(self._key, caller.credential) if caller.credential else None

    def _ask(self, repository: str, caller: Caller, name: str | None, ask: Ask) -> Admission:
        # Ends: each request adds an answer to `answers`, and `next_step` never requests the same one twice.
        answers: dict[str, UpstreamAnswer] = {}
        while True:
            match self._step(repository, name, answers):
                case Step.GRANT:
                    return self._admission(repository, caller)
                case Step.ASK_ANONYMOUSLY:
                    answers[ANYONE] = self._answer(repository, ANYONE, lambda: ask(None))
                case Step.ASK_AS_CALLER if name is not None:
                    answers[name] = self._answer(repository, name, lambda: ask(caller.credential))
                case Step.ABSENT:
                    raise NotFound(f"{repository} doesn't have it, or hides it from this caller")
                case Step.UNREACHABLE:
                    raise Unreachable(f"{repository} can't be reached to check access")
                case _:
                    raise Refused(
                        f"no access to {repository}",
                        hint="Give a pull secret or token that may read it.",
                    )

    def _step(self, repository: str, name: str | None, answers: dict[str, UpstreamAnswer]) -> Step:
        own = None if name is None else self._state(repository, name)
        return next_step(
            self._state(repository, ANYONE),
            own,
            answers.get(ANYONE),
            answers.get(name) if name else None,
        )

    def _answer(
        self, repository: str, name: str, ask: Callable[[], UpstreamAnswer]
    ) -> UpstreamAnswer:
        answer = ask()
        # ABSENT and UNREACHABLE aren't kept: neither says anything about access, and both may end at any moment.
        if answer in (UpstreamAnswer.ALLOWED, UpstreamAnswer.REFUSED):
            self._keep(repository, name, allowed=answer is UpstreamAnswer.ALLOWED)
        return answer

    def _admission(self, repository: str, caller: Caller) -> Admission:
        # A caller's credential isn't sent where the upstream doesn't need it.
        public = self._state(repository, ANYONE) is AccessState.ALLOWED
        return Admission(None if public else caller.credential)

    def _state(self, repository: str, name: str) -> AccessState:
        with self._lock:
            proof = self._proofs.get((repository, name))
        # Only anonymous proofs survive a restart: the key of the fingerprints doesn't.
        if proof is None and name == ANYONE and self._public is not None:
            since = self._public.public_since(repository)
            proof = Proof(allowed=True, at=since) if since is not None else None
        return state_of(proof, self._clock(), self._rules)

    def _keep(self, repository: str, name: str, *, allowed: bool) -> None:
        now = self._clock()
        with self._lock:
            self._proofs[repository, name] = Proof(allowed, now)
            self._proofs.move_to_end((repository, name))
            while len(self._proofs) > _MAX_PROOFS:
                self._proofs.popitem(last=False)
        # Outside the lock: it may write to disk.
        if name == ANYONE and self._public is not None:
            self._public.note_public(repository, now if allowed else None)

    @contextmanager
    def _one_at_a_time(self, key: tuple[str, str]) -> Iterator[None]:
        # Users are counted under `_lock`, so a lock isn't dropped between its lookup and its use.
        with self._lock:
            lock, users = self._requests.setdefault(key, (threading.Lock(), []))
            users.append(None)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users.pop()
                if not users:
                    self._requests.pop(key, None)
