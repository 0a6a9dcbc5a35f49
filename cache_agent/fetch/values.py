"""Input and output values of a pull, shared by the servers and the engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cache_agent.fetch.arrivals import SILENCE
from cache_agent.sources.throttle import Throttle
from cache_agent.store.values import StoredModel
from modelimage.reference import ImageReference
from modelimage.repository import ImageReader

# A caller waits for this pull. Pre-warming uses lower priorities.
PRIORITY_WAITING = 100


class PullState(Enum):
    """The phase of a pull. Its value goes over the wire."""

    RESOLVING = "resolving"
    FETCHING = "fetching"
    PUBLISHING = "publishing"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A model to pull. `reader` uses the caller's own credentials; None uses the node's.

    `caps` limit its transfers until a caller waits for its files. Without `evicting` it uses only free space.
    `trace` is the `traceparent` of what asked for it; empty for none.
    """

    image: ImageReference
    variant: str | None = None
    priority: int = PRIORITY_WAITING
    reader: ImageReader | None = None
    caps: tuple[Throttle, ...] = ()
    evicting: bool = True
    trace: str = ""


@dataclass(frozen=True, slots=True)
class PullResult:
    """A model that is in the store. `fetched` counts bytes read over a network or from a layout directory.

    `stale`: the registry was unreachable, and the model that the image last resolved to was used. `note`: a sentence
    on what is proved about an image that another tool made from a weightyard image.
    """

    model: StoredModel
    path: Path
    fetched: int
    reused: int
    seconds: float
    stale: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReadablePrefix:
    """The readable part of a file that is still downloading: bytes from the requested position up to `stop`, at `path`.

    Open the file immediately: its commit renames it at any time.
    """

    path: Path
    stop: int


@dataclass(frozen=True, slots=True)
class PullSnapshot:
    """The progress of a pull; sizes in bytes. `done` of `total` have come, verified or not.

    `by_source` holds (tier, source name, bytes); `by_tier` (tier, bytes, seconds from its first request to its last
    byte). `rate` is that of the last ten seconds, in bytes per second, 0 where none comes or too little has come to
    tell; `quiet` are the seconds since the last byte came, or since bytes were asked for; None before that. `queued`:
    the pulls of higher priority come first.
    """

    state: PullState
    total: int = 0
    done: int = 0
    resumed: int = 0
    reused: int = 0
    by_source: tuple[tuple[str, str, int], ...] = ()
    by_tier: tuple[tuple[str, int, float], ...] = ()
    rate: float = 0.0
    quiet: float | None = None
    queued: bool = False

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all has come, at this rate; None if that can't be told."""
        left = max(0, self.total - self.done)
        return left / self.rate if self.rate >= 1 else None

    @property
    def stands_still(self) -> bool:
        """Whether bytes are asked for, and none has come for a while."""
        asks = self.state is PullState.FETCHING and self.done < self.total and not self.queued
        return asks and self.quiet is not None and self.quiet > SILENCE
