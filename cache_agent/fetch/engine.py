"""The threads that fetch: a fixed number of workers, shared by all pulls, most urgent first.

A worker asks its job for a span, reads it from a source straight into reused memory, and lets the flight check and
write it. A transfer that makes no progress is closed from outside, which ends its read, and the span moves on to
the next source. Memory is one buffer for each worker, however large the model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cache_agent.errors import Cancelled
from cache_agent.fetch.job import Job, Work
from cache_agent.fetch.planner import Span
from cache_agent.fetch.throttle import Throttle
from cache_agent.sources.source import NotYet
from modelimage.errors import Unreachable
from modelimage.repository import BlobStream

DEFAULT_STREAMS: Final = 4
DEFAULT_STALL_SECONDS: Final = 10.0
BUFFER_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`streams` transfers at once; `bandwidth` caps their sum in bytes per second (0: no cap)."""

    streams: int = DEFAULT_STREAMS
    stall_seconds: float = DEFAULT_STALL_SECONDS
    bandwidth: float = 0.0


class Transfer:
    """One read under way, as the watchdog sees it."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.last_progress = monotonic()
        self.stalled = False
        self.stream: BlobStream | None = None
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        self.job, self.stalled, self.stream = job, False, None
        self.progressed()

    def progressed(self) -> None:
        self.last_progress = self._monotonic()

    def end(self) -> None:
        self.job, self.stream = None, None

    def close(self) -> None:
        """End the pending read."""
        stream = self.stream
        if stream is not None:
            stream.close()


class Engine:
    """Runs jobs. Threads start with the first job and end with `close`."""

    def __init__(
        self, options: EngineOptions, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._options, self.monotonic = options, monotonic
        self._total = Throttle(options.bandwidth, monotonic)
        self._jobs: list[Job] = []
        self._wake = threading.Condition()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._transfers = [Transfer(monotonic) for _ in range(options.streams)]

    def run(self, job: Job) -> None:
        """Carry a job out; returns when it has finished. Raises the error that ended it."""
        with self._wake:
            if self._closing:
                raise Cancelled("the agent is stopping", hint="Pull again when it runs.")
            self._jobs.append(job)
            self._start()
            self._wake.notify_all()
        try:
            job.finished.wait()
        except BaseException:
            self.cancel(job)
            job.finished.wait()
            raise
        finally:
            with self._wake:
                self._jobs.remove(job)
        if job.error is not None:
            raise job.error

    def cancel(self, job: Job) -> None:
        """End a job early; `run` raises Cancelled in its thread."""
        job.cancel()
        for transfer in self._transfers:
            if transfer.job is job:
                transfer.close()

    def set_bandwidth(self, rate: float) -> None:
        """Another cap on all transfers together, in bytes per second; 0 for none."""
        self._total.set_rate(rate)

    def hurry(self, job: Job, priority: int) -> None:
        """Raise a job's priority: someone more urgent waits for its files."""
        with self._wake:
            job.priority = max(job.priority, priority)
            self._wake.notify_all()

    def close(self) -> None:
        """Cancel what runs and end the threads."""
        with self._wake:
            self._closing = True
            jobs = list(self._jobs)
            self._wake.notify_all()
        for job in jobs:
            self.cancel(job)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        if self._threads:
            return
        targets: Iterable[tuple[str, Callable[[], None]]] = (
            *((f"fetch-{i}", self._worker(t)) for i, t in enumerate(self._transfers)),
            ("fetch-watchdog", self._watch),
        )
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True) for name, target in targets
        ]
        for thread in self._threads:
            thread.start()

    def _worker(self, transfer: Transfer) -> Callable[[], None]:
        def loop() -> None:
            buffer = memoryview(bytearray(BUFFER_BYTES))
            last: tuple[Job, int] | None = None
            while (work := self._next(last)) is not None:
                self._carry_out(work, transfer, buffer)
                last = (work.job, work.track)
                with self._wake:
                    self._wake.notify_all()

        return loop

    def _next(self, last: tuple[Job, int] | None) -> Work | None:
        """Wait for work; None when closing."""
        with self._wake:
            while not self._closing:
                again: float | None = None
                for job in sorted(self._jobs, key=lambda job: -job.priority):
                    found = job.next_work(last[1] if last and last[0] is job else None)
                    if isinstance(found, Work):
                        return found
                    if found is not None:
                        again = min(found, again) if again is not None else found
                self._wake.wait(None if again is None else max(0.0, again - self.monotonic()))
        return None

    def _carry_out(self, work: Work, transfer: Transfer, buffer: memoryview) -> None:
        job, pieces = work.job, work.state.span.pieces
        done, error = self._read(work, transfer, buffer)
        try:
            for piece in pieces[:done]:
                job.flights[piece.file.digest].advance()
        except Exception as failure:  # noqa: BLE001 - goes to the pull's caller, whatever it is
            # Not the source's doing, so no other source would help.
            job.abort(failure)
        if error is None:
            job.succeeded(work)
        else:
            job.failed(work, error, Span(pieces[done:]))

    def _read(
        self, work: Work, transfer: Transfer, buffer: memoryview
    ) -> tuple[int, Exception | None]:
        """Read a span's pieces off its source: how many came whole, and what ended it early."""
        job, pieces = work.job, work.state.span.pieces
        done = 0
        transfer.begin(job)
        try:
            with job.sources[work.source].open(pieces) as stream:
                transfer.stream = stream
                tick = self._ticker(work, transfer)
                for piece in pieces:
                    flight = job.flights[piece.file.digest]
                    flight.receive(piece, stream, buffer, tick)
                    if not job.sources[work.source].proves:
                        flight.proven = False
                    done += 1
        except Exception as error:  # noqa: BLE001 - goes to the pull's caller, whatever it is
            return done, self._reason(error, transfer, work)
        finally:
            transfer.end()
        return done, None

    def _reason(self, error: Exception, transfer: Transfer, work: Work) -> Exception:
        if not transfer.stalled or isinstance(error, NotYet):
            return error
        name = work.job.sources[work.source].name
        stalled = Unreachable(
            f"{name} made no progress for {self._options.stall_seconds:g} s",
            hint="Check the network and the server; the pull continues where it stopped.",
        )
        stalled.__cause__ = error
        return stalled

    def _ticker(self, work: Work, transfer: Transfer) -> Callable[[int], None]:
        job, source = work.job, work.source

        def tick(count: int) -> None:
            transfer.progressed()
            job.count(source, count)
            pause = self._total.take(count)
            if pause:
                job.stopped.wait(pause)
                transfer.progressed()
            if job.stopped.is_set():
                raise Cancelled("the pull was cancelled")

        return tick

    def _watch(self) -> None:
        """Close transfers that stand still. Sleeps while nothing is fetched."""
        period = self._options.stall_seconds / 4
        while True:
            with self._wake:
                if self._closing:
                    return
                self._wake.wait(period if self._jobs else None)
            limit = self.monotonic() - self._options.stall_seconds
            for transfer in self._transfers:
                if transfer.stream is not None and transfer.last_progress < limit:
                    transfer.stalled = True
                    transfer.close()
