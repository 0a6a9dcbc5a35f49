"""The services of one pull to the code that carries it out: cancellation, progress, jobs, bandwidth caps.

Only the pull's own thread calls `check_cancelled`, `enter`, `show`, `run`, `limited` and `end`. Any thread may call
`cancel`, `hurry` and `snapshot`, without a lock: the pull's thread replaces the values that they read, and appends to
the list of jobs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from cache_agent.errors import cancelled
from cache_agent.fetch.arrivals import Arrivals
from cache_agent.fetch.engine import FetchEngine
from cache_agent.fetch.job import (
    ChunkSink,
    Job,
    SourceRetryPolicy,
    by_source,
    by_tier,
    transfers,
)
from cache_agent.fetch.range_planner import FileQueue
from cache_agent.fetch.values import PRIORITY_WAITING, PullRequest, PullSnapshot, PullState
from cache_agent.observability.events import PullEnded
from cache_agent.sources.decorators import Limited
from cache_agent.sources.source import Source
from cache_agent.sources.throttle import Caps
from modelimage.digest import Digest


class Progressing(Protocol):
    """Part of a pull's progress, in bytes."""

    @property
    def received(self) -> int: ...
    @property
    def resumed(self) -> int: ...


class PullServices:
    """The state of one pull. `repository`: where its image comes from, the scope of what its bytes authorize."""

    def __init__(
        self,
        request: PullRequest,
        repository: str,
        *,
        engine: FetchEngine,
        policy: SourceRetryPolicy,
    ) -> None:
        self.request, self.repository = request, repository
        self._engine, self._policy = engine, policy
        self._started = engine.monotonic()
        # Beside the jobs' own: a pull can be cancelled before it has any.
        self._cancelled = threading.Event()
        self._caps = Caps(request.caps)
        self._jobs: list[Job] = []
        self._arrivals = Arrivals()
        self._state = PullState.RESOLVING
        self._phases = [(PullState.RESOLVING.value, 0.0)]
        self._total = self._reused = 0
        self._parts: Sequence[Progressing] = ()

    # In the pull's thread

    def check_cancelled(self) -> None:
        """Raises Cancelled after `cancel` was called."""
        if self._cancelled.is_set():
            raise cancelled()

    def enter(self, state: PullState) -> None:
        """Begin a phase."""
        self._state = state
        self._phases.append((state.value, self.seconds))

    def show(self, *, total: int, reused: int, parts: Sequence[Progressing]) -> None:
        """Replace the values that the progress is computed from. Sizes in bytes."""
        self._total, self._reused, self._parts = total, reused, tuple(parts)

    def limited(self, sources: Sequence[Source]) -> Sequence[Source]:
        """The sources under the request's bandwidth caps, which `cancel` and an urgent `hurry` lift."""
        if not self.request.caps:
            return sources
        return [Limited(source, self._caps, self._caps.pause) for source in sources]

    def run(
        self,
        queues: Sequence[FileQueue],
        sources: Sequence[Source],
        sinks: Mapping[Digest, ChunkSink],
    ) -> None:
        """Run range requests as one job and block. Raises Cancelled, and the error that ended the job."""
        job = Job(
            queues,
            sources,
            sinks,
            priority=self.request.priority,
            monotonic=self._engine.monotonic,
            policy=self._policy,
            arrivals=self._arrivals,
        )
        # Appended before the check: `cancel` either finds the job in the list or is seen by the check.
        self._jobs.append(job)
        self.check_cancelled()
        self._engine.run(job)

    def end(self, error: BaseException | None) -> PullEnded:
        """Enter the last state; returns the pull's outcome for the node's events."""
        self._state = PullState.DONE if error is None else PullState.FAILED
        return PullEnded(
            image=str(self.request.image),
            outcome="done" if error is None else type(error).__name__,
            seconds=self.seconds,
            reused=self._reused,
            by_source=tuple(by_source(self._jobs)),
            message=str(error or ""),
            phases=tuple(self._phases),
            transfers=tuple(transfers(self._jobs, self._started)),
            trace=self.request.trace,
        )

    # In any thread

    @property
    def seconds(self) -> float:
        """Seconds since the pull's start."""
        return self._engine.monotonic() - self._started

    @property
    def state(self) -> PullState:
        """The current phase."""
        return self._state

    @property
    def parts(self) -> Sequence[Progressing]:
        """The downloads and layers of the pull, running and complete."""
        return self._parts

    def cancel(self) -> None:
        """Stop soon without waiting."""
        # The flag first, then the jobs: a job added meanwhile sees the flag in `check_cancelled`.
        self._cancelled.set()
        # Else a worker would sleep on in a bandwidth cap.
        self._caps.lift()
        for job in list(self._jobs):
            self._engine.cancel(job)

    def hurry(self, priority: int) -> None:
        """Raise the jobs' priority for another pull. If a caller waits for that one, lift this pull's caps."""
        if priority >= PRIORITY_WAITING:
            self._caps.lift()
        for job in list(self._jobs):
            self._engine.hurry(job, priority)

    def _quiet(self, now: float) -> float | None:
        quiet = self._arrivals.quiet(now)
        if quiet is not None or self._state is not PullState.FETCHING:
            return quiet
        return now - self._started - self._phases[-1][1]

    def snapshot(self) -> PullSnapshot:
        """The progress so far."""
        parts, jobs = self._parts, list(self._jobs)
        now = self._engine.monotonic()
        return PullSnapshot(
            state=self._state,
            total=self._total,
            done=self._reused + sum(part.received for part in parts),
            resumed=sum(part.resumed for part in parts),
            reused=self._reused,
            by_source=tuple(by_source(jobs)),
            by_tier=tuple(by_tier(jobs)),
            rate=self._arrivals.rate(now),
            quiet=self._quiet(now),
            queued=any(job.is_waiting() for job in jobs),
        )
