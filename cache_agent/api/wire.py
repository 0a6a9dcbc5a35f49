"""The control API's request and response bodies. Times are seconds since the epoch, sizes are bytes.

Unknown fields are ignored, so that an agent and a command of different versions can work together. Plain dataclasses,
since commands without an agent build them and parse none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def to_document(view: DataclassInstance) -> dict[str, Any]:
    """A body as a JSON object. `cache_agent.api.wire_parsers` has the inverse."""
    return asdict(view)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A lease: a promise that a model is in use. `pod`: namespace/name of a holder that is a pod, where known."""

    id: str
    model: str
    holder: str
    since: float
    pod: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A cached model. `verified`: when the file that was checked longest ago was last checked; 0: never."""

    key: str
    path: str
    variant: str
    images: list[str]
    size: int
    files: int
    added: float
    last_used: float
    pinned: bool
    verified: float
    leases: list[LeaseView]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullBody:
    """Request a pull. Higher priorities are fetched first."""

    image: str
    variant: str | None = None
    # Above all desired models (0 to 99), because the client waits for it.
    priority: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PullProgress:
    """The progress of a pull: `done` of `total` bytes are on the disk."""

    event: Literal["progress"] = "progress"
    state: str
    total: int = 0
    done: int = 0
    resumed: int = 0
    reused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PullDone:
    """The model is in the store, verified and durable.

    `fetched`: bytes in all; `tiers`: bytes by tier, `tier_seconds`: from its first request to its last byte. `stale`:
    the registry was unreachable, so the last known model is used. `note`: what is proved about an image that another
    tool made from a weightyard image.
    """

    event: Literal["done"] = "done"
    key: str
    path: str
    variant: str
    image: str
    size: int
    fetched: int
    reused: int
    resumed: int
    seconds: float
    stale: bool = False
    note: str = ""
    tiers: dict[str, int] = field(default_factory=dict)
    tier_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorView:
    """A WeightyardError. `kind` is its nearest class in `modelimage.errors` or `cache_agent.errors`, `name` its own."""

    event: Literal["error"] = "error"
    kind: str
    name: str = ""
    message: str
    hint: str | None = None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseBody:
    """Request a lease. Repeated with the same `id`, it returns the same lease."""

    model: str
    holder: str
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PinBody:
    """Pin a model against eviction, or unpin it."""

    model: str
    pinned: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainView:
    """Why a pod waits, or an image's state. `state`: ready, waiting or failed; `sources`: bytes by tier and source.

    Of a desired model: `desired_by` names its CachedModels, `reason` is that of their status, `failures` how often it
    failed in a row, `retry_at` when it is tried again. `since`: 0 if unknown.
    """

    subject: str
    state: str
    image: str
    text: str
    since: float
    total: int = 0
    done: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    sources: dict[str, int] = field(default_factory=dict)
    desired_by: list[str] = field(default_factory=list)
    reason: str = ""
    failures: int = 0
    retry_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """Something that happened on the node. Numbers rise; `fields` are those of its log line."""

    number: int
    at: float
    level: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcBody:
    """Remove leftovers, then evict the least valuable models until `need` bytes are freed."""

    need: int = 0
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VictimView:
    """A model chosen for eviction, with the numbers that decided it."""

    key: str
    image: str
    freed: int
    value: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GcView:
    """The bytes that eviction freed, or would free. `held_by`: who keeps the rest, when that is less than requested."""

    freed: int
    victims: list[VictimView]
    held_by: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class RootSpace:
    """The space of one root, in bytes; `models` and `files` are counts."""

    root: str
    own: int
    promised: int
    headroom: int
    budget: int
    min_free: int
    disk_total: int
    disk_free: int
    evictable: int
    models: int
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceReport(RootSpace):
    """The space of a node's cache: the sums over its roots, and each root."""

    roots: list[RootSpace] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmBody:
    """Read a model into memory. `lock` keeps it there until it is unlocked or the agent stops."""

    model: str
    lock: bool = False
    unlock: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmView:
    """How much of a model is in memory. `believable` is false when the kernel hides that from this process.

    `cgroup`: the one charged for the pages that were read; `stopped`: why reading ended early, if it did.
    """

    key: str
    size: int
    resident: int
    believable: bool
    read: int
    locked: int
    cgroup: str
    stopped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedView:
    """A removed model and the bytes freed. `desired_by`: the CachedModels that bring it back."""

    key: str
    freed: int
    desired_by: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingView:
    """A violated invariant of the store."""

    kind: str
    path: str
    detail: str
    advice: str = ""
    repaired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckView:
    """The checker's result. `bytes_read`: how much of the store was read."""

    root: str
    files: int
    models: int
    bytes_read: int
    findings: list[FindingView]
