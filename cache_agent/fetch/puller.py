"""Starts pulls, each in its own thread, and tracks the running ones."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from cache_agent.fetch.engine import FetchEngine
from cache_agent.fetch.fetcher import Fetcher
from cache_agent.fetch.job import SourceRetryPolicy
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.pull_services import PullServices
from cache_agent.fetch.resolver import Resolver
from cache_agent.fetch.values import PullRequest, PullResult
from cache_agent.observability.events import Events, PullEnded, PullStarted
from cache_agent.store.values import repository_of
from modelimage.errors import InvalidInput
from modelimage.reference import EngineReference


@dataclass(frozen=True, slots=True)
class Puller:
    """Starts the pulls of one node. Thread-safe."""

    resolver: Resolver
    fetcher: Fetcher
    engine: FetchEngine
    events: Events = field(default_factory=Events)
    policy: SourceRetryPolicy = field(default_factory=SourceRetryPolicy)
    _running: set[Pull] = field(default_factory=set)
    # Longer than `_running`: a pull that has ended still tells of its end.
    _threads: set[Pull] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, request: PullRequest) -> Pull:
        """Start a pull and return its handle without waiting. Raises InvalidInput for a Docker engine's image."""
        if isinstance(request.image, EngineReference):
            raise InvalidInput(
                f"can't pull from a docker engine: {request.image}",
                hint="Push the image to a registry, or build it into a directory with --to oci:DIR.",
            )
        services = PullServices(
            request, repository_of(request.image), engine=self.engine, policy=self.policy
        )
        pull = Pull(services, self._carry_out, self._note_end)
        self.events.emit(PullStarted(str(request.image)))
        with self._lock:
            self._running.add(pull)
            over = {each for each in self._threads if each.is_over}
            self._threads.difference_update(over)
            self._threads.add(pull)
        # Outside of the lock, which its end takes: a pull without a thread ends here.
        pull.begin()
        return pull

    @property
    def busy(self) -> bool:
        """Whether any pull is running."""
        return bool(self._running)

    def cancel_all(self) -> None:
        """Cancel every running pull."""
        for pull in self._pulls():
            pull.cancel()

    def close(self) -> None:
        """Cancel every running pull and wait for their threads."""
        self.cancel_all()
        with self._lock:
            threads = list(self._threads)
        # Without the lock, which a pull takes when it ends.
        for pull in threads:
            pull.join()

    def _pulls(self) -> list[Pull]:
        with self._lock:
            return list(self._running)

    # In the pull's thread

    def _carry_out(self, pull: PullServices) -> PullResult:
        return self.fetcher.fetch(self.resolver.resolve(pull.request), pull)

    def _note_end(self, pull: Pull, end: PullEnded) -> None:
        # Before callers see the end: a repair that follows it must not find the node busy.
        with self._lock:
            self._running.discard(pull)
        self.events.emit(end)
