"""What goes over the control API's wire, both ways. Times are seconds since the epoch, sizes are bytes.

Unknown members are ignored, so that an agent and a command of different versions can talk.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class LeaseView(BaseModel):
    """A promise that a model is in use."""

    id: str
    model: str
    holder: str
    since: float


class ModelView(BaseModel):
    """A cached model. `verified` is when the longest unchecked of its files was last checked; 0: not yet."""

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
    """Ask for a model. Higher priority is fetched first."""

    image: str
    variant: str | None = None
    priority: int = 100


class PullProgress(BaseModel):
    """A pull under way: `done` of `total` bytes are on the disk."""

    event: Literal["progress"] = "progress"
    state: str
    total: int = 0
    done: int = 0
    resumed: int = 0
    reused: int = 0


class PullDone(BaseModel):
    """The model is in the store, verified and durable.

    `fetched` counts bytes by tier. `stale` tells that the registry was away and the last known model was taken.
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
    tiers: dict[str, int] = Field(default_factory=dict)


class ErrorView(BaseModel):
    """An error raised on purpose: `kind` is the name of its class in `modelimage.errors`."""

    event: Literal["error"] = "error"
    kind: str
    message: str
    hint: str | None = None
    retry_after: float | None = None


PullEvent = Annotated[PullProgress | PullDone | ErrorView, Field(discriminator="event")]


class LeaseBody(BaseModel):
    """Ask for a lease. The same `id` gives the same lease again."""

    model: str
    holder: str
    id: str | None = None


class PinBody(BaseModel):
    """Keep a model whatever else needs its space, or stop doing so."""

    model: str
    pinned: bool = True


class ExplainView(BaseModel):
    """Why a pod waits, or how an image is. `state`: ready, waiting or failed; `sources`: bytes by tier and place."""

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


class GcBody(BaseModel):
    """Remove leftovers; then evict the least valuable models until `need` bytes were freed."""

    need: int = 0
    dry_run: bool = False


class VictimView(BaseModel):
    """A model that eviction chose, and the numbers that chose it."""

    key: str
    image: str
    freed: int
    value: float
    why: str


class GcView(BaseModel):
    """What a collection freed, or would free. `held_by` names who keeps the rest, when that is less than was asked."""

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
    """The space of a node's cache: sums over its roots, and each root's own."""

    roots: list[RootSpace] = Field(default_factory=list)


class WarmBody(BaseModel):
    """Bring a model into memory; `lock` keeps it there until it is unlocked or the agent stops."""

    model: str
    lock: bool = False
    unlock: bool = False


class WarmView(BaseModel):
    """How much of a model is in memory. `believable` is false where the kernel hides that from this process.

    `cgroup` is charged for the pages read now; `stopped` says why reading ended early, if it did.
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
    """What removing a model freed."""

    key: str
    freed: int


class FindingView(BaseModel):
    """One invariant of the store that doesn't hold."""

    kind: str
    path: str
    detail: str
    advice: str = ""
    repaired: bool = False


class CheckView(BaseModel):
    """The checker's verdict. `bytes_read` tells how much of the store was read again."""

    root: str
    files: int
    models: int
    bytes_read: int
    findings: list[FindingView]
