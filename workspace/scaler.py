"""Computes the number of replicas from the queue. Pure: readings and a clock in, a number and its reason out.

vLLM queues a request only when its memory or its batch is full, so waiting requests exceed the capacity of all replicas
and require more. Scaling down requires that fewer replicas can hold the running requests, by the share of KV cache in
use and by batch size; running work always keeps its capacity. As in a HorizontalPodAutoscaler, scaling up requires the
higher target throughout the up-window, and scaling down the lower target throughout the down-window. From zero there is
no window: a client is waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

_FULL: Final = 0.8  # of KV cache in use: above it vLLM starts to preempt
DEFAULT_BATCH: Final = 256  # vLLM's --max-num-seqs on most GPUs


@dataclass(frozen=True, slots=True)
class Policy:
    """A Workspace's `scale` settings. Windows in seconds; `batch` is the number of concurrent requests per replica."""

    least: int
    most: int
    queue_depth: int
    up_window: float
    down_window: float
    batch: int = DEFAULT_BATCH


@dataclass(frozen=True, slots=True)
class Reading:
    """The scraped load of one replica. `kv_usage` is a share of 1."""

    running: float
    waiting: float
    kv_usage: float


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a whole Workspace at one moment.

    `current` replicas are requested and `ready` of them are ready. `readings` are those that could be scraped; `held`
    is the number of requests that the activator holds, `trace` the `traceparent` of that which waits longest.
    `by_server` is how many requests run on each server that was scraped, by its pod's uid.
    """

    current: int
    ready: int
    readings: tuple[Reading, ...]
    held: int = 0
    trace: str = ""
    by_server: Mapping[str, float] = field(default_factory=dict)

    @property
    def waiting(self) -> float:
        return self.held + sum(each.waiting for each in self.readings)

    @property
    def running(self) -> float:
        return sum(each.running for each in self.readings)

    @property
    def is_complete(self) -> bool:
        """Whether every ready replica was scraped; an unknown one may be busy."""
        return len(self.readings) >= self.ready


class ScalingCause(StrEnum):
    """What a decision follows from, for programs."""

    WAKING = "waking"  # a request waits, and no server runs
    QUEUE = "queue"  # more is to be done than the servers can do
    IDLE = "idle"  # fewer servers suffice
    BOUNDS = "bounds"  # the spec's minimum or maximum
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class ReplicaTarget:
    """The replicas that the load of one moment requires."""

    at: float
    replicas: int


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """The number of replicas to request, the reason and its cause, and the history for the next call."""

    replicas: int
    reason: str
    history: tuple[ReplicaTarget, ...]
    cause: ScalingCause = ScalingCause.UNCHANGED


def decide(
    policy: Policy, load: Load, history: Sequence[ReplicaTarget], now: float
) -> ScalingDecision:
    """The next number of replicas. Laws: within the policy's bounds; at most doubles, and shrinks by one; never below
    what holds the work in flight; unchanged by a second call on the same readings.
    """
    target = ReplicaTarget(now, _clamp(wanted(policy, load), policy))
    # The sample of this very moment is replaced, so a second call on the same readings changes
    # nothing.
    oldest = now - max(policy.up_window, policy.down_window)
    kept = (*_since(oldest, [each for each in history if each.at < now]), target)
    current = load.current
    if current == 0:
        return _from_zero(policy, target, kept)
    # The bounds or the replicas were changed by hand: no window applies.
    if current < policy.least or current > policy.most:
        return ScalingDecision(
            _clamp(current, policy), "back within minimum and maximum", kept, ScalingCause.BOUNDS
        )
    floor = min(_recent(kept, now - policy.up_window))
    if floor > current and _covers(kept, now, policy.up_window):
        # At most double per step, like the policy in render/autoscalers.py for an HPA.
        replicas = min(floor, current * 2)
        return ScalingDecision(
            replicas, f"{load.waiting:g} requests wait", kept, ScalingCause.QUEUE
        )
    ceiling = max(_recent(kept, now - policy.down_window))
    # An incomplete scrape never scales down: the replica without a reading may be the busy one.
    if ceiling < current and _covers(kept, now, policy.down_window) and load.is_complete:
        replicas = max(current - 1, ceiling)
        return ScalingDecision(
            replicas, f"{replicas} replicas suffice for {load.running:g} running requests", kept,
            ScalingCause.IDLE,
        )  # fmt: skip
    return ScalingDecision(current, "unchanged", kept)


def wanted(policy: Policy, load: Load) -> int:
    """The replicas that the load of this moment requires, without windows, steps or bounds."""
    by_queue = 0
    if load.waiting:
        # Never fewer than requested: replicas that are still starting will take part of the queue.
        by_queue = max(load.current, 1, _ceil(load.waiting / policy.queue_depth))
    # Servers that start, or don't answer, may take what others have: nothing is concluded meanwhile.
    elif not load.is_complete or load.ready < load.current:
        return load.current
    # With a queue too: what runs already may need more replicas than a short queue does.
    by_memory = _ceil(sum(each.kv_usage for each in load.readings) / _FULL)
    by_batch = _ceil(load.running / policy.batch)
    return max(by_queue, by_memory, by_batch, 1 if load.running else 0)


def _from_zero(
    policy: Policy, target: ReplicaTarget, kept: tuple[ReplicaTarget, ...]
) -> ScalingDecision:
    if target.replicas == 0:
        return ScalingDecision(0, "no requests wait", kept)
    return ScalingDecision(max(1, policy.least), "a request waits", kept, ScalingCause.WAKING)


def _clamp(replicas: int, policy: Policy) -> int:
    return max(policy.least, min(policy.most, replicas))


def _since(oldest: float, history: Sequence[ReplicaTarget]) -> Sequence[ReplicaTarget]:
    """The targets within a window, plus the last one before it, which proves that the whole window is covered."""
    before = sum(each.at <= oldest for each in history)
    return history[max(0, before - 1) :]


def _recent(history: Sequence[ReplicaTarget], since: float) -> list[int]:
    return [each.replicas for each in history if each.at >= since]


def _covers(history: Sequence[ReplicaTarget], now: float, window: float) -> bool:
    """Whether the history covers a window. Right after a start it doesn't, so nothing may be concluded."""
    return history[0].at <= now - window


def _ceil(value: float) -> int:
    whole = int(value)
    return whole if whole == value else whole + 1
