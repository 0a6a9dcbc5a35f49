"""Starts pulls, each in its own thread when its turn comes, and tracks those that wait or run."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from cache_agent.errors import too_many_pulls
from cache_agent.fetch.engine import FetchEngine
from cache_agent.fetch.fetcher import Fetcher
from cache_agent.fetch.job import SourceRetryPolicy
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.pull_queue import PullQueue
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
    queue: PullQueue[Pull] = field(default_factory=PullQueue)
    # Waiting or running.
    _running: set[Pull] = field(default_factory=set)
    # Longer than `_running`: a pull that has ended still tells of its end.
    _threads: set[Pull] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # Held by the one thread that starts those whose turn has come.
    _starting: threading.Lock = field(default_factory=threading.Lock)

    def start(self, request: PullRequest) -> Pull:
        """Start a pull and return its handle without waiting; it may wait for its turn.

        Raises InvalidInput for a Docker engine's image.
        """
        if isinstance(request.image, EngineReference):
            raise InvalidInput(
                f"can't pull from a docker engine: {request.image}",
                hint="Push the image to a registry, or build it into a directory with --to oci:DIR.",
            )
        services = PullServices(
            request, repository_of(request.image), engine=self.engine, policy=self.policy
        )
        pull = Pull(services, self._carry_out, self._note_end, self._withdraw)
        self.events.emit(PullStarted(str(request.image)))
        with self._lock:
            self._running.add(pull)
            over = {each for each in self._threads if each.is_over}
            self._threads.difference_update(over)
            self._threads.add(pull)
            waits = self.queue.enter(pull, pull.repository, pull.priority)
        # Outside of the lock, which its end takes: a pull without a thread ends here.
        if not waits:
            pull.refuse(too_many_pulls(self.queue.most_waiting))
        self._begin_next()
        return pull

    @property
    def busy(self) -> bool:
        """Whether any pull waits or runs."""
        return bool(self._running)

    def cancel_all(self) -> None:
        """Cancel every pull."""
        for pull in self._pulls():
            pull.cancel()

    def close(self) -> None:
        """Cancel every pull and wait for their threads."""
        self.cancel_all()
        with self._lock:
            threads = list(self._threads)
        # Without the lock, which a pull takes when it ends.
        for pull in threads:
            pull.join()

    def _pulls(self) -> list[Pull]:
        with self._lock:
            return list(self._running)

    def _withdraw(self, pull: Pull) -> bool:
        with self._lock:
            return self.queue.withdraw(pull)

    def _begin_next(self) -> None:
        """Begin the pulls whose turn it is."""
        # By one thread, in a loop: a pull that can't have a thread ends at once, and the next one's turn comes.
        while (pull := self._turn()) is not None:
            try:
                pull.begin()
            finally:
                self._starting.release()

    def _turn(self) -> Pull | None:
        with self._lock:
            # Who holds it looks again afterwards.
            if self._starting.locked():
                return None
            pull = self.queue.next()
            if pull is not None:
                self._starting.acquire()
            return pull

    # In the pull's thread

    def _carry_out(self, pull: PullServices) -> PullResult:
        return self.fetcher.fetch(self.resolver.resolve(pull.request), pull)

    def _note_end(self, pull: Pull, end: PullEnded) -> None:
        # Before callers see the end: a repair that follows it must not find the node busy.
        with self._lock:
            self._running.discard(pull)
            self.queue.leave(pull)
        self.events.emit(end)
        self._begin_next()
