"""What is asked of a pull, and what it tells: values that the servers and the engine share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cache_agent.sources.throttle import Throttle
from cache_agent.store.values import Model
from modelimage.reference import ImageReference
from modelimage.repository import ImageReader

# Somebody waits for it. What is only warmed ahead asks with less.
PRIORITY_WAITING = 100


class PullState(Enum):
    """Where a pull is. The value goes over the wire."""

    RESOLVING = "resolving"
    FETCHING = "fetching"
    PUBLISHING = "publishing"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What to pull. `reader` reads it with the caller's own credentials; None reads it with the node's.

    `caps` hold its transfers back until somebody waits for its files; without `evicting` it takes free space only.
    """

    image: ImageReference
    variant: str | None = None
    priority: int = PRIORITY_WAITING
    reader: ImageReader | None = None
    caps: tuple[Throttle, ...] = ()
    evicting: bool = True


@dataclass(frozen=True, slots=True)
class PullResult:
    """A model that is in the store. `fetched` counts bytes that came over a network or out of a layout.

    `stale` tells that the registry was away and the image's last known model was taken.
    """

    model: Model
    path: Path
    fetched: int
    reused: int
    seconds: float
    stale: bool = False


@dataclass(frozen=True, slots=True)
class PullSnapshot:
    """One look at a pull; sizes in bytes. `done` of `total` are on the disk."""

    state: PullState
    total: int = 0
    done: int = 0
    resumed: int = 0
    reused: int = 0
    by_source: tuple[tuple[str, str, int], ...] = ()
