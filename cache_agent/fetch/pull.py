"""The handle of a pull: callers follow it, wait for it and cancel it. Must not know how a pull works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from cache_agent.errors import cancelled, no_thread
from cache_agent.fetch.pull_services import Progressing, PullServices
from cache_agent.fetch.values import PullRequest, PullResult, PullSnapshot, PullState
from cache_agent.observability.events import PullEnded
from modelimage.errors import WeightyardError, release_locals


class Pull:
    """A pull that runs in a thread of its own, once its turn has come. All methods may be called from any thread.

    `work` carries it out. `ending` is called at its end, before callers see it; `withdraw` takes it out of the queue of
    pulls, and returns whether it waited there.
    """

    def __init__(
        self,
        services: PullServices,
        work: Callable[[PullServices], PullResult],
        ending: Callable[[Pull, PullEnded], None],
        withdraw: Callable[[Pull], bool],
    ) -> None:
        self._services, self._work, self._ending = services, work, ending
        self._withdraw = withdraw
        self._thread = threading.Thread(target=self._main, name="pull", daemon=True)
        self._ended = threading.Event()
        # Guards `_listeners` and, together with it, the moment at which `_ended` is set.
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._result: PullResult | None = None
        self._error: BaseException | None = None

    @property
    def repository(self) -> str:
        """The image's repository."""
        return self._services.repository

    @property
    def priority(self) -> int:
        """The priority that was asked for."""
        return self._services.request.priority

    @property
    def state(self) -> PullState:
        """The current phase; cheaper than a snapshot."""
        return self._services.state

    @property
    def parts(self) -> Sequence[Progressing]:
        """The downloads and layers of the pull, running and complete."""
        return self._services.parts

    def begin(self) -> None:
        """Start the thread; without one the pull ends with Busy. Only its Puller calls it."""
        try:
            self._thread.start()
        except RuntimeError as error:
            # Nobody else would end it, and its callers would wait for ever.
            self.refuse(no_thread(error))

    def refuse(self, error: WeightyardError) -> None:
        """End a pull that has no thread with an error. Only its Puller calls it."""
        self._error = error
        self._end()

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended, after the last that it told."""
        return self._ended.is_set() and not self._thread.is_alive()

    def join(self) -> None:
        """Wait for the end, successful or not."""
        self._ended.wait()
        # Never started where it was cancelled while it waited, or the system allows no more threads.
        if self._thread.ident is not None:
            self._thread.join()

    def cancel(self) -> None:
        """Stop soon without waiting. Verified chunks stay on disk for the next pull."""
        self._services.cancel()
        # No thread of its own will notice.
        if self._withdraw(self):
            self.refuse(cancelled())

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Call `tell` exactly once: at the end in the pull's thread, or now if the pull has ended."""
        with self._lock:
            if not self._ended.is_set():
                # Under the lock that `_ended` is set with: otherwise an end in between would tell nobody.
                self._listeners.append(tell)
                return
        tell()

    def result(self, timeout: float | None = None) -> PullResult | None:
        """Wait for the end and return the result; None after `timeout` seconds. Raises the pull's error."""
        if not self._ended.wait(timeout):
            return None
        if self._error is not None:
            raise self._error
        return self._result

    def watch(self, interval: float) -> Iterator[PullSnapshot]:
        """Yield a snapshot every `interval` seconds, and a last one after the end."""
        while not self._ended.wait(interval):
            yield self.snapshot()
        yield self.snapshot()

    def snapshot(self) -> PullSnapshot:
        """The progress so far."""
        return self._services.snapshot()

    def _main(self) -> None:
        try:
            self._result = self._work(self._services)
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            # Many pulls that were refused one large document each would keep all of them.
            release_locals(error)
            self._error = error
        self._end()

    def _end(self) -> None:
        self._ending(self, self._services.end(self._error))
        # Under the lock, so that a listener is either in the list by now or called by `when_ended` itself.
        with self._lock:
            self._ended.set()
        for tell in self._listeners:
            tell()


# Starts a pull and returns its handle without waiting. Raises InvalidInput.
StartPull = Callable[[PullRequest], Pull]
