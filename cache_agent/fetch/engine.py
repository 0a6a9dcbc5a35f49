"""Runs the fetch threads: a fixed number of workers shared by all pulls, most urgent first, and a watchdog.

A worker takes a range request from a job, reads it from a source into its reused buffer, and hands the bytes to the
download, which verifies and writes them. The watchdog closes a transfer that makes no progress, which ends the pending
read, and the request moves on to the next source. Memory: one buffer for each worker, whatever the model's size.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from cache_agent.errors import Cancelled, no_thread
from cache_agent.fetch.fetched_bytes import BySource, FetchedBytes
from cache_agent.fetch.job import AssignedRange, Job, Preempted, TooSlow
from cache_agent.fetch.limiter import WINDOW_SECONDS, ConcurrencyLimiter
from cache_agent.fetch.range_planner import BUNDLE_BYTES, RangeRequest
from cache_agent.sources.source import RetryLater
from cache_agent.sources.throttle import Throttle
from modelimage.errors import Unreachable, WeightyardError
from modelimage.repository import BlobStream
from modelimage.stage_workers import available_cores

DEFAULT_STREAMS: Final = 4
DEFAULT_STALL_SECONDS: Final = 10.0
BUFFER_BYTES: Final = 4 << 20
# A shorter transfer measures the latency rather than the rate.
TELLING_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """At most `streams` concurrent transfers (see `ConcurrencyLimiter`); `bandwidth`: cap of their sum, 0 for none.

    `min_rate`: below this rate the job tries another source; 0: never. Rates in bytes per second.
    """

    streams: int = DEFAULT_STREAMS
    stall_seconds: float = DEFAULT_STALL_SECONDS
    bandwidth: float = 0.0
    min_rate: float = 0.0


class ReadProgress:
    """The progress of a worker's current read, for the watchdog. `left`: why the watchdog closed it, if it did."""

    # No lock: one worker writes, the watchdog reads and at worst acts one period late. Only `left` is the watchdog's.
    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.last_progress = monotonic()
        self.left: WeightyardError | None = None
        self.stream: BlobStream | None = None
        self.work: AssignedRange | None = None
        self._began = self._paused = 0.0
        self._received = 0

    def begin(self, work: AssignedRange) -> None:
        self.work, self.left, self.stream = work, None, None
        self._began, self._paused, self._received = self._monotonic(), 0.0, 0
        self.progressed(0)

    def progressed(self, count: int) -> None:
        self.last_progress = self._monotonic()
        self._received += count

    def paused(self, seconds: float) -> None:
        """Exclude seconds spent waiting for this node's own cap: they must not count against the source."""
        self._paused += seconds
        self.progressed(0)

    def rate(self, after: float) -> float | None:
        """Bytes per second so far; None until `after` seconds or TELLING_BYTES make it meaningful."""
        seconds = self._monotonic() - self._began - self._paused
        if seconds <= 0 or (seconds < after and self._received < TELLING_BYTES):
            return None
        return self._received / seconds

    def end(self) -> None:
        self.work, self.stream = None, None

    def close(self) -> None:
        """Close the stream, which ends a pending read. Called from the watchdog and from `Engine.cancel`."""
        # Read once: the worker sets it to None at any time.
        stream = self.stream
        if stream is not None:
            stream.close()


class FetchEngine:
    """Runs jobs on shared worker threads, which start with the first job and end with `close`."""

    def __init__(
        self,
        options: EngineOptions,
        monotonic: Callable[[], float] = time.monotonic,
        limiter: ConcurrencyLimiter | None = None,
    ) -> None:
        self._options, self.monotonic = options, monotonic
        self._total = Throttle(options.bandwidth, monotonic)
        self._limiter = limiter or ConcurrencyLimiter(available_cores(), monotonic)
        self._jobs: list[Job] = []
        self._fetched = FetchedBytes()
        # One condition for jobs, slots and closing: a worker waits for all of them at a time.
        self._wake = threading.Condition()
        self._closing = False
        self._threads: list[threading.Thread] = []
        # A fixed list: the watchdog and `cancel` iterate over it without a lock.
        self._transfers = [ReadProgress(monotonic) for _ in range(options.streams)]

    def run(self, job: Job) -> None:
        """Run a job and block until it has finished. Raises the error that ended it."""
        with self._wake:
            if self._closing:
                raise Cancelled("the agent is stopping", hint="Pull again when it is running.")
            self._start()
            self._jobs.append(job)
            self._wake.notify_all()
        try:
            job.finished.wait()
        except BaseException:
            # Workers may still be writing to the job's partials, which the caller closes next.
            self.cancel(job)
            job.finished.wait()
            raise
        finally:
            with self._wake:
                # One step for who asks for the bytes: else they would be missing in between, or counted twice.
                self._jobs.remove(job)
                self._fetched.ended(job)
        if job.error is not None:
            raise job.error

    def load(self) -> tuple[int, int]:
        """How many range requests of all jobs wait, and how many run."""
        with self._wake:
            jobs = list(self._jobs)
        loads = [job.load() for job in jobs]
        return sum(waiting for waiting, _ in loads), sum(running for _, running in loads)

    def fetched_bytes(self) -> BySource:
        """The bytes that came from each (tier, source) since the start, those of running transfers included.

        Of pulls and repairs, successful or not; also bytes that were discarded, such as those of a wrong chunk.
        """
        with self._wake:
            return self._fetched.total(self._jobs)

    def cancel(self, job: Job) -> None:
        """Cancel a job; `run` raises Cancelled in its own thread."""
        # Before the streams are closed: a worker whose read ends must find the job stopped, or it would retry.
        job.cancel()
        for transfer in self._transfers:
            work = transfer.work
            if work is not None and work.job is job:
                transfer.close()

    def set_bandwidth(self, rate: float) -> None:
        """Set the cap on the sum of all transfers, in bytes per second; 0 for none."""
        self._total.set_rate(rate)

    def hurry(self, job: Job, priority: int) -> None:
        """Raise a job's priority, because a more urgent pull is waiting for its files."""
        with self._wake:
            # Never lowered: the more urgent pull may still be waiting.
            job.priority = max(job.priority, priority)
            self._wake.notify_all()

    def close(self) -> None:
        """Cancel all jobs and join the threads."""
        with self._wake:
            self._closing = True
            jobs = list(self._jobs)
            self._wake.notify_all()
        # Outside the lock, which the workers need to end their work.
        for job in jobs:
            self.cancel(job)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        """Start the threads that don't run yet. Raises Busy when the system allows too few."""
        targets: Iterable[tuple[str, Callable[[], None]]] = (
            ("fetch-watchdog", self._watch),
            *((f"fetch-{i}", self._worker(t)) for i, t in enumerate(self._transfers)),
        )
        for name, target in islice(targets, len(self._threads), None):
            # Daemons: a source that stalls can hold a read for long, which must not keep the process from exiting.
            thread = threading.Thread(target=target, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # With the watchdog and one worker pulls make progress; the others are tried at the next pull.
                if len(self._threads) > 1:
                    return
                raise no_thread(error) from error
            self._threads.append(thread)

    def _worker(self, transfer: ReadProgress) -> Callable[[], None]:
        def loop() -> None:
            buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))
            last: tuple[Job, int] | None = None
            while (work := self._next(last)) is not None:
                self._carry_out(work, transfer, buffer)
                last = (work.job, work.file_queue)

        return loop

    def _next(self, last: tuple[Job, int] | None) -> AssignedRange | None:
        """Release the worker's slot, if it has one, and wait for the next work; None when closing."""
        with self._wake:
            if last is not None:
                self._limiter.leave()
                self._wake.notify_all()
            while not self._closing:
                if self._jobs and not self._limiter.has_slot():
                    # With a timeout: nothing notifies when the cores become idle.
                    self._wake.wait(WINDOW_SECONDS)
                    continue
                again: float | None = None
                # Stable: among equal priorities the oldest job comes first.
                for job in sorted(self._jobs, key=lambda job: -job.priority):
                    found = job.next_work(last[1] if last and last[0] is job else None)
                    if isinstance(found, AssignedRange):
                        self._limiter.join()
                        return found
                    if found is not None:
                        again = min(found, again) if again is not None else found
                # Without a due time only a notification can bring work: every worker that ends notifies.
                self._wake.wait(None if again is None else max(0.0, again - self.monotonic()))
        return None

    def _carry_out(self, work: AssignedRange, transfer: ReadProgress, buffer: memoryview) -> None:
        job, pieces = work.job, work.state.range_request.pieces
        done, error = self._read(work, transfer, buffer)
        try:
            # Before `succeeded`: lost chunks are queued again while this work still keeps the job from finishing.
            for piece in pieces[:done]:
                job.fetch_again(work, job.downloads[piece.file.digest].advance())
        except Exception as failure:  # noqa: BLE001 - goes to the pull's caller, whatever it is
            # Committing failed on this node: no other source would help.
            job.abort(failure)
        if error is None:
            job.succeeded(work)
        else:
            job.failed(work, error, RangeRequest(pieces[done:]))

    def _read(
        self, work: AssignedRange, transfer: ReadProgress, buffer: memoryview
    ) -> tuple[int, Exception | None]:
        """Read a range request from its source. Returns the number of complete chunk ranges and the error, if any."""
        job, pieces = work.job, work.state.range_request.pieces
        done = 0
        transfer.begin(work)
        try:
            with job.sources[work.source].open(pieces) as stream:
                transfer.stream = stream
                tick = self._ticker(work, transfer)
                for piece in pieces:
                    download = job.downloads[piece.file.digest]
                    if not job.sources[work.source].authorizes:
                        # Before its first byte: from then on nothing more of the file may be served early.
                        download.mark_unproven()
                    # Under a cap small reads: filling the buffer at a low rate would look like a stall.
                    download.receive(piece, stream, buffer[: self._total.burst(len(buffer))], tick)
                    done += 1
                    if done < len(pieces) and self._is_outranked(work):
                        break
        except Exception as error:  # noqa: BLE001 - goes to the pull's caller, whatever it is
            return done, self._reason(error, transfer)
        finally:
            self._note_rate(work, transfer)
            transfer.end()
        # Outside the `with`: an error inside it would count against the source (circuit breaker, peer penalty).
        return done, None if done == len(pieces) else Preempted("a more urgent pull is waiting")

    def _is_outranked(self, work: AssignedRange) -> bool:
        """Whether a more urgent job waits for a worker. A request of at most one chunk is never interrupted."""
        if work.state.range_request.size <= BUNDLE_BYTES:
            return False
        with self._wake:
            return any(each.priority > work.job.priority and each.has_work() for each in self._jobs)

    @staticmethod
    def _reason(error: Exception, transfer: ReadProgress) -> Exception:
        # After the watchdog closed a stream, the read's own error is only the consequence; keep the watchdog's.
        if transfer.left is None or isinstance(error, RetryLater):
            return error
        transfer.left.__cause__ = error
        return transfer.left

    def _note_rate(self, work: AssignedRange, transfer: ReadProgress) -> None:
        rate = transfer.rate(self._options.stall_seconds)
        if rate is not None:
            work.job.note_rate(work.source, rate)

    def _ticker(self, work: AssignedRange, transfer: ReadProgress) -> Callable[[int], None]:
        job, source = work.job, work.source

        def tick(count: int) -> None:
            transfer.progressed(count)
            job.count(source, count)
            pause = self._total.take(count)
            if pause:
                # Not a sleep: cancelling must not wait for the cap.
                job.stopped.wait(pause)
                transfer.paused(pause)
            if job.stopped.is_set():
                raise Cancelled("the pull was cancelled")

        return tick

    def _watch(self) -> None:
        """Close stalled transfers, and slow ones if another source is faster. Sleeps while there are no jobs."""
        # A stall is noticed at most a quarter late.
        period = self._options.stall_seconds / 4
        while True:
            with self._wake:
                if self._closing:
                    return
                self._wake.wait(period if self._jobs else None)
            for transfer in self._transfers:
                # Before the stream is open there is nothing to close; connecting has a timeout of its own.
                work = transfer.work
                if work is not None and transfer.stream is not None:
                    self._look_at(work, transfer)

    def _look_at(self, work: AssignedRange, transfer: ReadProgress) -> None:
        patience, name = self._options.stall_seconds, work.job.sources[work.source].name
        if transfer.last_progress < self.monotonic() - patience:
            transfer.left = Unreachable(
                f"{name} made no progress for {patience:g} s",
                hint="Check the network and the server; the pull continues where it stopped.",
            )
            transfer.close()
            return
        rate = transfer.rate(patience)
        if rate is not None:
            work.job.note_rate(work.source, rate)
            # Not a compressed layer: it is a single chunk range, all of which would be lost.
            if work.state.range_request.at_stake <= BUNDLE_BYTES and work.job.is_too_slow(work):
                transfer.left = TooSlow(f"{name} is slow: {rate:.0f} bytes a second")
                transfer.close()
