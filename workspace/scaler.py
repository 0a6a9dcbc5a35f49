"""How many replicas a queue needs. Pure: readings and a clock in, a number and its reason out.

vLLM queues a request only when its memory or its batch is full, so waiting requests are work that no replica has
room for: they ask for more replicas. Going down asks whether fewer replicas could hold what runs now, by the share
of KV cache in use and by the size of the batch; work in flight is never left without a place. As in a
HorizontalPodAutoscaler, growth waits until it is wanted throughout the up-window, shrinking until nothing more was
wanted throughout the down-window. From zero there is no window: somebody waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_FULL: Final = 0.8  # of KV cache in use: above it vLLM starts to preempt
DEFAULT_BATCH: Final = 256  # vLLM's --max-num-seqs on most GPUs


@dataclass(frozen=True, slots=True)
class Policy:
    """What a Workspace's `scale` says. Windows in seconds; `batch` is how many requests one replica runs at once."""

    least: int
    most: int
    queue_depth: int
    up_window: float
    down_window: float
    batch: int = DEFAULT_BATCH


@dataclass(frozen=True, slots=True)
class Reading:
    """One replica as it was scraped. `kv_usage` is a share of 1."""

    running: float
    waiting: float
    kv_usage: float


@dataclass(frozen=True, slots=True)
class Load:
    """All of a Workspace at one moment.

    `current` replicas are asked for, `ready` of them answer; `readings` are those that could be scraped, and `held` is
    how many requests the activator holds.
    """

    current: int
    ready: int
    readings: tuple[Reading, ...]
    held: int = 0

    @property
    def waiting(self) -> float:
        return self.held + sum(each.waiting for each in self.readings)

    @property
    def running(self) -> float:
        return sum(each.running for each in self.readings)

    @property
    def is_complete(self) -> bool:
        """Whether every ready replica told its load; what isn't known may be busy."""
        return len(self.readings) >= self.ready


@dataclass(frozen=True, slots=True)
class ReplicaTarget:
    """What the load of one moment asked for."""

    at: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The number of replicas to ask for, why, and what to hand to the next call."""

    replicas: int
    reason: str
    history: tuple[ReplicaTarget, ...]


def decide(policy: Policy, load: Load, history: Sequence[ReplicaTarget], now: float) -> Answer:
    """The next number of replicas. Laws: within the policy's bounds; at most doubles, and shrinks by one; never below
    what holds the work in flight; unchanged by a second call on the same readings."""
    wish = ReplicaTarget(now, _clamp(wanted(policy, load), policy))
    oldest = now - max(policy.up_window, policy.down_window)
    kept = (*_since(oldest, [each for each in history if each.at < now]), wish)
    current = load.current
    if current == 0:
        return _from_zero(policy, wish, kept)
    if current < policy.least or current > policy.most:
        return Answer(_clamp(current, policy), "within the bounds that were set", kept)
    floor = min(_recent(kept, now - policy.up_window))
    if floor > current and _covers(kept, now, policy.up_window):
        replicas = min(floor, current * 2)
        return Answer(replicas, f"{load.waiting:g} requests wait", kept)
    ceiling = max(_recent(kept, now - policy.down_window))
    if ceiling < current and _covers(kept, now, policy.down_window) and load.is_complete:
        replicas = max(current - 1, ceiling)
        return Answer(
            replicas, f"{replicas} replicas hold the {load.running:g} requests that run", kept
        )
    return Answer(current, "as it is", kept)


def wanted(policy: Policy, load: Load) -> int:
    """What the load of this moment asks for, without windows, steps or bounds."""
    if load.waiting:
        # Replicas that are still starting count: they will take of the queue.
        return max(load.current, 1, _ceil(load.waiting / policy.queue_depth))
    if not load.is_complete or load.ready < load.current:
        return load.current
    by_memory = _ceil(sum(each.kv_usage for each in load.readings) / _FULL)
    by_batch = _ceil(load.running / policy.batch)
    return max(by_memory, by_batch, 1 if load.running else 0)


def _from_zero(policy: Policy, wish: ReplicaTarget, kept: tuple[ReplicaTarget, ...]) -> Answer:
    if wish.replicas == 0:
        return Answer(0, "nothing waits", kept)
    return Answer(max(1, policy.least), "a request waits", kept)


def _clamp(replicas: int, policy: Policy) -> int:
    return max(policy.least, min(policy.most, replicas))


def _since(oldest: float, history: Sequence[ReplicaTarget]) -> Sequence[ReplicaTarget]:
    """The wishes of a window, and the last one before it, which says that the window is known whole."""
    before = sum(each.at <= oldest for each in history)
    return history[max(0, before - 1) :]


def _recent(history: Sequence[ReplicaTarget], since: float) -> list[int]:
    return [each.replicas for each in history if each.at >= since]


def _covers(history: Sequence[ReplicaTarget], now: float, window: float) -> bool:
    """Whether the history is as long as a window: right after a start it isn't, and nothing may be concluded."""
    return history[0].at <= now - window


def _ceil(value: float) -> int:
    whole = int(value)
    return whole if whole == value else whole + 1
