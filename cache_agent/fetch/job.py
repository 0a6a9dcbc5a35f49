"""Schedules the range requests of one pull: remaining requests, retries, source choice, final result.

Memory only, one lock. The engine's threads take work and report results; a job never blocks and does no IO.
"""

from __future__ import annotations

import bisect
import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cache_agent.errors import Cancelled
from cache_agent.fetch.arrivals import Arrivals
from cache_agent.fetch.download import Tick
from cache_agent.fetch.range_planner import (
    FileQueue,
    RangeRequest,
    SourceView,
    choose_queue,
    choose_source,
    is_too_slow,
    run_length,
)
from cache_agent.sources.source import ChunkRange, FetchUpstream, RetryLater, Source, Tier
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.repository import BlobStream

# Errors after which another source is tried, or the same one later; any other error ends the pull.
_MOVE_ON: Final = (Unreachable, RemoteRefused, NotFound, AccessDenied, DigestMismatch)
_FIRST_REST: Final = 0.25
_LONGEST_REST: Final = 15.0
_LONGEST_RETRY_AFTER: Final = 120.0


class TooSlow(Unreachable):
    """Another source is faster or unmeasured: the request moves on. Not counted as a failure of this source."""


class Preempted(Unreachable):
    """A more urgent job needs the worker: the rest of the request is queued again. Not a failure of its source."""


class ChunkSink(Protocol):
    """Receives the chunk ranges that a job fetches: a file's Download, or a layer of a foreign image.

    Called by several threads concurrently.
    """

    def mark_unproven(self) -> None:
        """Note that bytes come from a source that doesn't authorize its readers. Called before the first of them."""

    def receive(
        self, piece: ChunkRange, stream: BlobStream, buffer: memoryview, tick: Tick
    ) -> None:
        """Read one chunk range from the stream and keep it. Its errors count as failures of the source."""

    def advance(self) -> Sequence[ChunkRange]:
        """Continue hashing and commit if complete. Returns chunk ranges to fetch again, because the disk lost them.

        Its errors end the pull.
        """


@dataclass
class RequestState:
    """A range request, its order in its queue, and for each source its failures on it and the end of its backoff."""

    range_request: RangeRequest
    order: int = 0
    backoff_until: dict[int, float] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    excluded: set[int] = field(default_factory=set)
    last_error: WeightyardError | None = None


@dataclass(order=True)
class DelayedRequest:
    """A request that is queued again at `due`, when its source is likely to have the chunk."""

    due: float
    file_queue: int
    order: int
    state: RequestState = field(compare=False)
    in_line: bool = field(default=False, compare=False)


@dataclass
class AssignedRange:
    """A range request assigned to a worker, with its source."""

    job: Job
    file_queue: int
    state: RequestState
    source: int


@dataclass(frozen=True, slots=True)
class SourceRetryPolicy:
    """How often a request may fail at one source before that source is excluded for it.

    `min_rate`: bytes per second of one transfer below which another source is tried; 0: never.
    """

    attempts: int = 5
    rate_limited_attempts: int = 40
    min_rate: float = 0.0


class Job:
    """The range requests of one pull. Finished when all are done, or at the first error that ends the pull."""

    def __init__(
        self,
        queues: Sequence[FileQueue],
        sources: Sequence[Source],
        downloads: Mapping[Digest, ChunkSink],
        *,
        priority: int,
        monotonic: Callable[[], float],
        policy: SourceRetryPolicy,
        arrivals: Arrivals | None = None,
    ) -> None:
        """`arrivals`: where the bytes of the whole pull are counted; None: nobody asks for them."""
        self.sources, self.downloads = sources, downloads
        self.priority = priority
        # Two events: workers leave a stopped job at their next look, and only then may its caller close the partials.
        self.finished = threading.Event()
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self.bytes_by_source = [0] * len(sources)
        self.times_by_source: list[tuple[float, float] | None] = [None] * len(sources)
        self._arrivals = arrivals or Arrivals()
        self._waiting = [
            deque(
                RequestState(range_request, order) for order, range_request in enumerate(file_queue)
            )
            for file_queue in queues
        ]
        self._delayed: list[DelayedRequest] = []
        self._workers = [0] * len(queues)
        self._left = sum(len(file_queue) for file_queue in queues)
        self._rests = [0.0] * len(sources)
        self._rates: list[float | None] = [None] * len(sources)
        self._monotonic, self._policy = monotonic, policy
        # Taken inside the engine's condition when a worker asks for work: that one inside this would be a deadlock.
        self._lock = threading.Lock()
        self._update_finished()

    def next_work(self, last: int | None) -> AssignedRange | float | None:
        """Work for a free worker, the time at which there will be some (a float), or None while nothing is queued."""
        with self._lock:
            if self.stopped.is_set():
                return None
            now = self._monotonic()
            self._recall(now)
            waiting = [len(file_queue) for file_queue in self._waiting]
            file_queue = choose_queue(waiting, self._workers, last)
            if file_queue is None:
                return self._delayed[0].due if self._delayed else None
            state = self._waiting[file_queue][0]
            source = choose_source(self._views(state), now, self._policy.min_rate)
            if source is None:
                # Every source is excluded for this request, so the pull can't complete: don't fetch the rest.
                self._fail(state.last_error or Unreachable("no source has this model's bytes"))
                return None
            if isinstance(source, float):
                return source
            self._workers[file_queue] += 1
            if self.times_by_source[source] is None:
                self.times_by_source[source] = (now, now)
            return AssignedRange(self, file_queue, self._take(file_queue), source)

    def has_work(self) -> bool:
        """Whether any request waits for a worker."""
        with self._lock:
            return any(self._waiting)

    def load(self) -> tuple[int, int]:
        """How many range requests wait for a worker or for their next attempt, and how many run."""
        with self._lock:
            return sum(map(len, self._waiting)) + len(self._delayed), sum(self._workers)

    def is_waiting(self) -> bool:
        """Whether it has requests to make and no worker, since those of higher priority come first."""
        with self._lock:
            return any(self._waiting) and not any(self._workers) and not self.finished.is_set()

    def succeeded(self, work: AssignedRange) -> None:
        with self._lock:
            self._workers[work.file_queue] -= 1
            self._left -= 1
            self._call_next_in_line()
            self._update_finished()

    def failed(self, work: AssignedRange, error: BaseException, remaining: RangeRequest) -> None:
        """Handle a failed request: queue its `remaining` part again, or end the pull."""
        with self._lock:
            self._workers[work.file_queue] -= 1
            if self.stopped.is_set():
                # The last worker to leave a stopped job finishes it.
                self._update_finished()
            elif not isinstance(error, _MOVE_ON):
                self._fail(error)
            else:
                work.state.range_request = remaining
                if isinstance(error, RetryLater):
                    # Not a failure: counting it would exclude the peers after `attempts` polls.
                    due = self._monotonic() + error.after
                    put_off = DelayedRequest(
                        due, work.file_queue, work.state.order, work.state, error.in_line
                    )
                    heapq.heappush(self._delayed, put_off)
                else:
                    # First in its queue: the hash of this file stops at the missing chunk.
                    self._note_failure(work, error)
                    self._waiting[work.file_queue].appendleft(work.state)

    def fetch_again(self, work: AssignedRange, pieces: Sequence[ChunkRange]) -> None:
        """Queue chunk ranges again, in the queue of the work that is about to end."""
        with self._lock:
            if not self.stopped.is_set():
                self._left += len(pieces)
                for piece in pieces:
                    state = RequestState(RangeRequest((piece,)), work.state.order)
                    # In front: the file can't be finished before it has these bytes.
                    self._waiting[work.file_queue].appendleft(state)

    def _take(self, file_queue: int) -> RequestState:
        """Take the first request of a queue, merged with the consecutive ones that never failed.

        Not merged if there are peers: nodes share a file chunk by chunk.
        """
        waiting = self._waiting[file_queue]
        length = run_length(len(waiting))
        state = waiting.popleft()
        # Failures and exclusions are kept per request: merging would apply one request's to its neighbours.
        if state.failures or any(source.tier is Tier.PEER for source in self.sources):
            return state
        pieces = state.range_request.pieces
        for _ in range(length - 1):
            if waiting[0].failures or not pieces[-1].is_followed_by(
                waiting[0].range_request.pieces[0]
            ):
                break
            pieces += waiting.popleft().range_request.pieces
            # A merged request is reported as done once.
            self._left -= 1
        state.range_request = RangeRequest(pieces)
        return state

    def _recall(self, now: float) -> None:
        """Queue delayed requests that are due, in their original order: the hash needs the lowest chunk first."""
        while self._delayed and self._delayed[0].due <= now:
            back = heapq.heappop(self._delayed)
            bisect.insort(self._waiting[back.file_queue], back.state, key=lambda state: state.order)

    def _call_next_in_line(self) -> None:
        """Make the first delayed request that waits for one of this node's own transfers due: one has just ended."""
        in_line = [each for each in self._delayed if each.in_line]
        if in_line:
            first = min(in_line, key=lambda each: (each.file_queue, each.order))
            first.due = self._monotonic()
            heapq.heapify(self._delayed)

    def abort(self, error: BaseException) -> None:
        """End the pull with this error; running transfers end at their next read."""
        with self._lock:
            if not self.finished.is_set():
                self._fail(error)

    def cancel(self) -> None:
        self.abort(
            Cancelled("the pull was cancelled", hint="Pull again to continue where it stopped.")
        )

    def count(self, source: int, size: int) -> None:
        with self._lock:
            now = self._monotonic()
            self.bytes_by_source[source] += size
            began, _ = self.times_by_source[source] or (now, 0.0)
            self.times_by_source[source] = (began, now)
        self._arrivals.add(size, now)

    def note_rate(self, source: int, rate: float) -> None:
        """Average in the rate of a transfer from a source, finished or running, in bytes per second."""
        with self._lock:
            before = self._rates[source]
            # Half of it the newest: a source's rate may change in the middle of a pull.
            self._rates[source] = rate if before is None else (before + rate) / 2

    def is_too_slow(self, work: AssignedRange) -> bool:
        """Whether a running request should move to another source."""
        with self._lock:
            views = self._views(work.state)
            return is_too_slow(views, work.source, self._monotonic(), self._policy.min_rate)

    def _views(self, state: RequestState) -> list[SourceView]:
        return [
            SourceView(
                # Rests hold for every request to the source, the other delay for this one.
                max(self._rests[index], state.backoff_until.get(index, 0.0)),
                index in state.excluded,
                state.failures.get(index, 0),
                self._rates[index],
                swarm=source.tier is Tier.PEER,
            )
            for index, source in enumerate(self.sources)
        ]

    def _note_failure(self, work: AssignedRange, error: WeightyardError) -> None:
        # Two scopes: backoff after an overload or an outage holds for the whole source (`_rests`), so one dead source
        # doesn't cost each request a timeout; everything else concerns this request only (`state`).
        state, source = work.state, work.source
        if isinstance(error, (TooSlow, Preempted)):
            return
        if not isinstance(error, FetchUpstream):
            state.last_error = error
        count = state.failures[source] = state.failures.get(source, 0) + 1
        now = self._monotonic()
        # Before Unreachable, its base class: an overloaded source answers, so it gets many more attempts.
        if isinstance(error, RateLimited):
            asked = error.retry_after or 0.0
            pause = min(asked or _FIRST_REST * 2**count, _LONGEST_RETRY_AFTER)
            self._rests[source] = max(self._rests[source], now + pause)
            # Who asks for hours won't answer in minutes: another source may.
            hopeless = asked > _LONGEST_RETRY_AFTER
            limit = 1 if hopeless else self._policy.rate_limited_attempts
        elif isinstance(error, Unreachable):
            rest = min(_FIRST_REST * 2 ** (count - 1), _LONGEST_REST)
            self._rests[source] = max(self._rests[source], now + rest)
            limit = self._policy.attempts
        elif isinstance(error, FetchUpstream):
            # The peers delegate this chunk to upstream; retry them later, in case upstream fails.
            state.backoff_until[source] = now + min(2.0**count, _LONGEST_REST)
            limit = self._policy.attempts
        else:
            # Wrong bytes may come from a bad connection once; a refusal is final.
            limit = 2 if isinstance(error, DigestMismatch) else 1
        if count >= limit:
            state.excluded.add(source)

    def _fail(self, error: BaseException) -> None:
        # The first error is the cause; later ones only follow from stopping.
        if self.error is None:
            self.error = error
        self.stopped.set()
        self._delayed.clear()
        for file_queue in self._waiting:
            file_queue.clear()
        self._update_finished()

    def _update_finished(self) -> None:
        """Finish only when no worker is active: the caller then closes the partials."""
        if not any(self._workers) and (self._left == 0 or self.stopped.is_set()):
            self.finished.set()


def by_source(jobs: Sequence[Job]) -> Iterator[tuple[str, str, int]]:
    """(tier, name, bytes) of every source that sent any bytes."""
    for job in jobs:
        for source, size in zip(job.sources, job.bytes_by_source, strict=True):
            if size:
                yield source.tier.value, source.name, size


def transfers(jobs: Sequence[Job], since: float) -> Iterator[tuple[str, str, int, float, float]]:
    """(tier, name, bytes, first request, last byte) of every source that sent any bytes; seconds after `since`."""
    for job in jobs:
        for source, size, times in zip(
            job.sources, job.bytes_by_source, job.times_by_source, strict=True
        ):
            if size and times is not None:
                yield source.tier.value, source.name, size, times[0] - since, times[1] - since


def by_tier(jobs: Sequence[Job]) -> Iterator[tuple[str, int, float]]:
    """(tier, bytes, seconds from its first request to its last byte) of every tier that sent any bytes."""
    found: dict[str, tuple[int, float, float]] = {}
    for job in jobs:
        for source, size, times in zip(
            job.sources, job.bytes_by_source, job.times_by_source, strict=True
        ):
            if size and times is not None:
                had, began, ended = found.get(source.tier.value, (0, *times))
                span = min(began, times[0]), max(ended, times[1])
                found[source.tier.value] = (had + size, *span)
    for tier, (size, began, ended) in found.items():
        yield tier, size, ended - began
