"""The events of a node, for metrics, logs and traces: a dataclass for each, passed to `Events.emit`.

Adding one touches this module, and the tables of what listens to it. Sizes are bytes, times seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class PullStarted:
    """A pull began."""

    image: str


@dataclass(frozen=True, slots=True)
class PullEnded:
    """A pull succeeded or failed.

    `outcome`: `done`, or the error's class. `seconds`: its duration. `reused`: bytes that were stored already.
    `by_source`: (tier, source, bytes) of what was fetched. `phases`: (name, start in seconds since the pull's start).
    `transfers`: (tier, source, bytes, first request, last byte), the times as for phases. `trace`: its `traceparent`.
    """

    image: str
    outcome: str
    seconds: float
    reused: int
    by_source: Sequence[tuple[str, str, int]]
    message: str = ""
    phases: Sequence[tuple[str, float]] = ()
    transfers: Sequence[tuple[str, str, int, float, float]] = ()
    trace: str = ""


@dataclass(frozen=True, slots=True)
class PublishStarted:
    """kubelet asked to publish a pod's volume. It asks again while the volume waits."""


@dataclass(frozen=True, slots=True)
class PublishEnded:
    """A request to publish a volume was answered.

    `outcome`: `done`, or the error's class. `seconds`: since the volume was first asked for; None unless it was
    published by this request. `by_tier`: (tier, bytes) of what its pull brought; `cached` for what the node held.
    `pod`: namespace/name. `trace`: the volume's `traceparent`.
    """

    outcome: str
    seconds: float | None = None
    by_tier: Sequence[tuple[str, int]] = ()
    pod: str = ""
    trace: str = ""


@dataclass(frozen=True, slots=True)
class DesiredModelReady:
    """A desired model is held as desired, `seconds` after it was asked for or was lost."""

    seconds: float


@dataclass(frozen=True, slots=True)
class DesiredModelFailed:
    """A desired model can't be had: its image can't be read, or there is no space for it. It is tried again."""

    name: str
    reason: str
    message: str


class EvictionReason(StrEnum):
    """What a model was removed for."""

    PULL = "pull"  # space for a pull
    PREWARMING = "prewarming"  # space for a desired model of higher priority
    GC = "gc"  # space that somebody asked for by `weightyard gc`
    REMOVAL = "removal"  # somebody removed this very model


@dataclass(frozen=True, slots=True)
class ModelEvicted:
    """A model was evicted for space, or removed by hand. `detail`: why this one, with its numbers."""

    image: str
    freed: int
    reason: EvictionReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReservationRefused:
    """A reservation of `need` bytes was refused for lack of space."""

    need: int


@dataclass(frozen=True, slots=True)
class FileScrubbed:
    """The scrub read and verified a file of `size` bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class FileDamaged:
    """A stored file was found damaged; `file` is its sha256."""

    file: str
    detail: str


@dataclass(frozen=True, slots=True)
class FileRepaired:
    """A damaged file was repaired; `chunks` of it were fetched again."""

    file: str
    chunks: int


@dataclass(frozen=True, slots=True)
class ModelWarmed:
    """A model was read into memory: `brought` bytes; `found` bytes were there already."""

    brought: int
    found: int


@dataclass(frozen=True, slots=True)
class LeaseExpired:
    """A lease ended because its holder is gone."""

    lease: str
    holder: str


@dataclass(frozen=True, slots=True)
class MaintenanceFailed:
    """A round of maintenance failed in part; the next round tries again."""

    detail: str


@dataclass(frozen=True, slots=True)
class ManifestsNotCached:
    """A model was pulled, but caching the manifests that a container runtime requests failed."""

    image: str
    detail: str


@dataclass(frozen=True, slots=True)
class HubImageIgnored:
    """The Hub is away and an image of the requested repository is here, but may not stand in for it."""

    repo: str
    image: str
    detail: str


@dataclass(frozen=True, slots=True)
class PeerSent:
    """`size` bytes were sent to another node."""

    peer: str
    size: int


@dataclass(frozen=True, slots=True)
class PeerEjected:
    """A peer was temporarily ejected."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class PeerRequestRefused:
    """A request to the peers server was refused; `reason`: signature, clock or replayed."""

    reason: str


Event = (
    PullStarted
    | PullEnded
    | PublishStarted
    | PublishEnded
    | DesiredModelReady
    | DesiredModelFailed
    | ModelEvicted
    | ReservationRefused
    | FileScrubbed
    | FileDamaged
    | FileRepaired
    | ModelWarmed
    | LeaseExpired
    | MaintenanceFailed
    | ManifestsNotCached
    | HubImageIgnored
    | PeerSent
    | PeerEjected
    | PeerRequestRefused
)


class Events:
    """A listener. This one ignores all events."""

    def emit(self, event: Event) -> None:
        """Take an event, in the thread where it happened: must be quick and must not raise."""


class Broadcast(Events):
    """Passes every event to several listeners."""

    def __init__(self, listeners: Sequence[Events]) -> None:
        self._listeners = listeners

    def emit(self, event: Event) -> None:
        for each in self._listeners:
            each.emit(event)
