"""The control API's request and response bodies. Times are seconds since the epoch, sizes are bytes.

Unknown fields are ignored, so that an agent and a command of different versions can work together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class LeaseView(BaseModel):
    """A lease: a promise that a model is in use. `pod`: namespace/name of a holder that is a pod, where known."""

    id: str
    model: str
    holder: str
    since: float
    pod: str = ""


class ModelView(BaseModel):
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


class PullBody(BaseModel):
    """Request a pull. Higher priorities are fetched first."""

    image: str
    variant: str | None = None
    # Above all desired models (0 to 99), because the client waits for it.
    priority: int = 100


class PullProgress(BaseModel):
    """The progress of a pull: `done` of `total` bytes are on the disk."""

    event: Literal["progress"] = "progress"
    state: str
    total: int = 0
    done: int = 0
    resumed: int = 0
    reused: int = 0


class PullDone(BaseModel):
    """The model is in the store, verified and durable.

    `fetched`: bytes in all; `tiers`: bytes by tier. `stale`: the registry was unreachable, so the last known model is
    used. `note`: what is proved about an image that another tool made from a weightyard image.
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
    tiers: dict[str, int] = Field(default_factory=dict)


class ErrorView(BaseModel):
    """A WeightyardError. `kind` is its nearest class in `modelimage.errors` or `cache_agent.errors`, `name` its own."""

    event: Literal["error"] = "error"
    kind: str
    name: str = ""
    message: str
    hint: str | None = None
    retry_after: float | None = None


PullEvent = Annotated[PullProgress | PullDone | ErrorView, Field(discriminator="event")]


class LeaseBody(BaseModel):
    """Request a lease. Repeated with the same `id`, it returns the same lease."""

    model: str
    holder: str
    id: str | None = None


class PinBody(BaseModel):
    """Pin a model against eviction, or unpin it."""

    model: str
    pinned: bool = True


class ExplainView(BaseModel):
    """Why a pod waits, or an image's state. `state`: ready, waiting or failed; `sources`: bytes by tier and source."""

    subject: str
    state: str
    image: str
    text: str
    since: float
    total: int = 0
    done: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    sources: dict[str, int] = Field(default_factory=dict)


class EventView(BaseModel):
    """Something that happened on the node. Numbers rise; `fields` are those of its log line."""

    number: int
    at: float
    level: str
    text: str
    fields: dict[str, Any] = Field(default_factory=dict)


class GcBody(BaseModel):
    """Remove leftovers, then evict the least valuable models until `need` bytes are freed."""

    need: int = 0
    dry_run: bool = False


class VictimView(BaseModel):
    """A model chosen for eviction, with the numbers that decided it."""

    key: str
    image: str
    freed: int
    value: float
    why: str


class GcView(BaseModel):
    """The bytes that eviction freed, or would free. `held_by`: who keeps the rest, when that is less than requested."""

    freed: int
    victims: list[VictimView]
    held_by: list[str] = Field(default_factory=list)


class RootSpace(BaseModel):
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


class SpaceReport(RootSpace):
    """The space of a node's cache: the sums over its roots, and each root."""

    roots: list[RootSpace] = Field(default_factory=list)


class WarmBody(BaseModel):
    """Read a model into memory. `lock` keeps it there until it is unlocked or the agent stops."""

    model: str
    lock: bool = False
    unlock: bool = False


class WarmView(BaseModel):
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


class RemovedView(BaseModel):
    """A removed model and the bytes freed."""

    key: str
    freed: int


class FindingView(BaseModel):
    """A violated invariant of the store."""

    kind: str
    path: str
    detail: str
    advice: str = ""
    repaired: bool = False


class CheckView(BaseModel):
    """The checker's result. `bytes_read`: how much of the store was read."""

    root: str
    files: int
    models: int
    bytes_read: int
    findings: list[FindingView]
