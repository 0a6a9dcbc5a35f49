"""The fetching part of one pull: which spans are left, what each source did, how it ends. Memory only, one lock.

The engine's threads ask it for work and tell it of results; it never blocks and does no IO.
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
from cache_agent.fetch.download import Tick
from cache_agent.fetch.planner import (
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

# What may be tried again somewhere else, or later; everything else ends the pull.
_MOVE_ON: Final = (Unreachable, RemoteRefused, NotFound, AccessDenied, DigestMismatch)
_FIRST_REST: Final = 0.25
_LONGEST_REST: Final = 15.0
_LONGEST_RETRY_AFTER: Final = 120.0


class TooSlow(Unreachable):
    """Another source is faster, or untried: the span moves on, and this source has done nothing wrong."""


class Preempted(Unreachable):
    """Somebody more urgent waits: the rest of the span waits again, and its source has done nothing wrong."""


class ChunkSink(Protocol):
    """Takes the pieces of what a job fetches: a file's flight does, and what carries a layer of a foreign image.

    Called by several threads at once.
    """

    proven: bool

    def receive(
        self, piece: ChunkRange, stream: BlobStream, buffer: memoryview, tick: Tick
    ) -> None:
        """Read one piece off the stream and keep it. What it raises is the source's failure."""

    def advance(self) -> Sequence[ChunkRange]:
        """Do what has become possible since; pieces that must come again, since this disk has lost them.

        What it raises ends the pull.
        """


@dataclass
class RequestState:
    """A span, its place in its track, how each source failed on it, and until when it isn't to be asked for it."""

    range_request: RangeRequest
    order: int = 0
    rests: dict[int, float] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    excluded: set[int] = field(default_factory=set)
    last_error: WeightyardError | None = None


@dataclass(order=True)
class DelayedRequest:
    """A span that comes back at `due`, when its source is likely to have it."""

    due: float
    file_queue: int
    order: int
    state: RequestState = field(compare=False)
    in_line: bool = field(default=False, compare=False)


@dataclass
class Work:
    """A span for a worker, and the source to ask."""

    job: Job
    file_queue: int
    state: RequestState
    source: int


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a span may fail at one source before that source is given up for it.

    `min_rate`: bytes a second of one transfer below which another source is tried; 0 for never.
    """

    attempts: int = 5
    rate_limited_attempts: int = 40
    min_rate: float = 0.0


class Job:
    """Spans of one pull. Finished when every span is done, or at the first error that ends it."""

    def __init__(
        self,
        tracks: Sequence[FileQueue],
        sources: Sequence[Source],
        downloads: Mapping[Digest, ChunkSink],
        *,
        priority: int,
        monotonic: Callable[[], float],
        policy: RetryPolicy,
    ) -> None:
        self.sources, self.downloads = sources, downloads
        self.priority = priority
        self.finished = threading.Event()
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self.bytes_by_source = [0] * len(sources)
        self._waiting = [
            deque(
                RequestState(range_request, order) for order, range_request in enumerate(file_queue)
            )
            for file_queue in tracks
        ]
        self._put_off: list[DelayedRequest] = []
        self._workers = [0] * len(tracks)
        self._left = sum(len(file_queue) for file_queue in tracks)
        self._rests = [0.0] * len(sources)
        self._rates: list[float | None] = [None] * len(sources)
        self._monotonic, self._policy = monotonic, policy
        self._lock = threading.Lock()
        self._update_finished()

    def next_work(self, last: int | None) -> Work | float | None:
        """Work for a free worker; a time to ask again; or None while nothing waits."""
        with self._lock:
            if self.stopped.is_set():
                return None
            now = self._monotonic()
            self._recall(now)
            waiting = [len(file_queue) for file_queue in self._waiting]
            file_queue = choose_queue(waiting, self._workers, last)
            if file_queue is None:
                return self._put_off[0].due if self._put_off else None
            state = self._waiting[file_queue][0]
            source = choose_source(self._views(state), now, self._policy.min_rate)
            if source is None:
                self._fail(state.last_error or Unreachable("no source has this model's bytes"))
                return None
            if isinstance(source, float):
                return source
            self._workers[file_queue] += 1
            return Work(self, file_queue, self._take(file_queue), source)

    def has_work(self) -> bool:
        """Whether anything waits for a worker."""
        with self._lock:
            return any(self._waiting)

    def succeeded(self, work: Work) -> None:
        with self._lock:
            self._workers[work.file_queue] -= 1
            self._left -= 1
            self._call_next_in_line()
            self._update_finished()

    def failed(self, work: Work, error: BaseException, remaining: RangeRequest) -> None:
        """A span failed: it waits again with what is left of it, or the pull ends."""
        with self._lock:
            self._workers[work.file_queue] -= 1
            if self.stopped.is_set():
                self._update_finished()
            elif not isinstance(error, _MOVE_ON):
                self._fail(error)
            else:
                work.state.range_request = remaining
                if isinstance(error, RetryLater):
                    due = self._monotonic() + error.after
                    put_off = DelayedRequest(
                        due, work.file_queue, work.state.order, work.state, error.in_line
                    )
                    heapq.heappush(self._put_off, put_off)
                else:
                    self._note_failure(work, error)
                    self._waiting[work.file_queue].appendleft(work.state)

    def fetch_again(self, work: Work, pieces: Sequence[ChunkRange]) -> None:
        """Pieces wait once more, in the track of the work that is about to end."""
        with self._lock:
            if not self.stopped.is_set():
                self._left += len(pieces)
                for piece in pieces:
                    state = RequestState(RangeRequest((piece,)), work.state.order)
                    self._waiting[work.file_queue].appendleft(state)

    def _take(self, file_queue: int) -> RequestState:
        """The first of a track's spans, and in it those that follow, none of which failed before.

        Alone where nodes share the work chunk by chunk.
        """
        waiting = self._waiting[file_queue]
        length = run_length(len(waiting))
        state = waiting.popleft()
        if state.failures or any(source.tier is Tier.PEER for source in self.sources):
            return state
        pieces = state.range_request.pieces
        for _ in range(length - 1):
            if waiting[0].failures or not pieces[-1].goes_on_with(
                waiting[0].range_request.pieces[0]
            ):
                break
            pieces += waiting.popleft().range_request.pieces
            self._left -= 1
        state.range_request = RangeRequest(pieces)
        return state

    def _recall(self, now: float) -> None:
        """What was put off until now waits again, at its place in its track."""
        while self._put_off and self._put_off[0].due <= now:
            back = heapq.heappop(self._put_off)
            bisect.insort(self._waiting[back.file_queue], back.state, key=lambda state: state.order)

    def _call_next_in_line(self) -> None:
        """A transfer ended: whichever span waits for that is due now, the first of them."""
        in_line = [each for each in self._put_off if each.in_line]
        if in_line:
            first = min(in_line, key=lambda each: (each.file_queue, each.order))
            first.due = self._monotonic()
            heapq.heapify(self._put_off)

    def abort(self, error: BaseException) -> None:
        """End the pull now; work under way ends at its next read."""
        with self._lock:
            if not self.finished.is_set():
                self._fail(error)

    def cancel(self) -> None:
        self.abort(
            Cancelled("the pull was cancelled", hint="Pull again to continue where it stopped.")
        )

    def count(self, source: int, size: int) -> None:
        with self._lock:
            self.bytes_by_source[source] += size

    def note_rate(self, source: int, rate: float) -> None:
        """How fast a transfer from a source was, or is so far, in bytes a second."""
        with self._lock:
            before = self._rates[source]
            self._rates[source] = rate if before is None else (before + rate) / 2

    def is_too_slow(self, work: Work) -> bool:
        """Whether a span had better be fetched from another source."""
        with self._lock:
            views = self._views(work.state)
            return is_too_slow(views, work.source, self._monotonic(), self._policy.min_rate)

    def _views(self, state: RequestState) -> list[SourceView]:
        return [
            SourceView(
                max(self._rests[index], state.rests.get(index, 0.0)),
                index in state.excluded,
                state.failures.get(index, 0),
                self._rates[index],
                swarm=source.tier is Tier.PEER,
            )
            for index, source in enumerate(self.sources)
        ]

    def _note_failure(self, work: Work, error: WeightyardError) -> None:
        state, source = work.state, work.source
        if isinstance(error, (TooSlow, Preempted)):
            return
        if not isinstance(error, FetchUpstream):
            state.last_error = error
        count = state.failures[source] = state.failures.get(source, 0) + 1
        now = self._monotonic()
        if isinstance(error, RateLimited):
            pause = min(error.retry_after or _FIRST_REST * 2**count, _LONGEST_RETRY_AFTER)
            self._rests[source] = max(self._rests[source], now + pause)
            limit = self._policy.rate_limited_attempts
        elif isinstance(error, Unreachable):
            rest = min(_FIRST_REST * 2 ** (count - 1), _LONGEST_REST)
            self._rests[source] = max(self._rests[source], now + rest)
            limit = self._policy.attempts
        elif isinstance(error, FetchUpstream):
            state.rests[source] = now + min(2.0**count, _LONGEST_REST)
            limit = self._policy.attempts
        else:
            # Wrong bytes may be a bad connection once; a refusal stays one.
            limit = 2 if isinstance(error, DigestMismatch) else 1
        if count >= limit:
            state.excluded.add(source)

    def _fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self.stopped.set()
        self._put_off.clear()
        for file_queue in self._waiting:
            file_queue.clear()
        self._update_finished()

    def _update_finished(self) -> None:
        """Finished only when no worker is in it any more: its partials can be closed then."""
        if not any(self._workers) and (self._left == 0 or self.stopped.is_set()):
            self.finished.set()


def by_source(jobs: Sequence[Job]) -> Iterator[tuple[str, str, int]]:
    """(tier, name, bytes) of every source that gave any."""
    for job in jobs:
        for source, size in zip(job.sources, job.bytes_by_source, strict=True):
            if size:
                yield source.tier.value, source.name, size
