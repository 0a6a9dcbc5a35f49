"""Plans the order of range requests and chooses their sources. Pure: no threads, no clock, no sockets.

Files are split into range requests: one chunk of a large file, or several small files of one layer. The requests of a
file form a queue. A worker stays on its queue, since sha256 needs a file's bytes in order and is cheapest while they
are in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cache_agent.chunks import chunk_range
from cache_agent.sources.source import ChunkRange
from modelimage.digest import Digest
from modelimage.record import CHUNK_SIZE, RecordFile

# Switch sources in the middle of a chunk only for one that is this many times faster: the part received is lost.
MUCH_FASTER: Final = 4.0
# At most this many bytes of small files in one request.
BUNDLE_BYTES: Final = CHUNK_SIZE
# Consecutive chunks in one request: saves the server and the connection a start for each.
RUN_CHUNKS: Final = 8
# With at most this many queues left, workers spread over them instead of staying on theirs.
LAST_QUEUES: Final = 8


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """The content of one request: chunk ranges of one layer, in the layer's order. `size`: their bytes."""

    pieces: tuple[ChunkRange, ...]
    # Summed once: workers ask for it after each of a request's pieces, of which there may be thousands.
    size: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum(len(piece.range) for piece in self.pieces))

    @property
    def at_stake(self) -> int:
        """The most bytes lost when it ends early: completed chunk ranges are kept."""
        return max(len(piece.range) for piece in self.pieces)


FileQueue = tuple[RangeRequest, ...]


def unique_files(files: Iterable[RecordFile]) -> list[RecordFile]:
    """The first file of each sha256, in order: a file that a model has under two names is fetched once."""
    first: dict[Digest, RecordFile] = {}
    for file in files:
        first.setdefault(file.digest, file)
    return list(first.values())


def plan_queues(
    files: Sequence[RecordFile], missing: Mapping[Digest, Collection[int]]
) -> list[FileQueue]:
    """Queues that together cover exactly the missing chunks (by sha256 of the file), largest queue first.

    `files` are in the record's order, which is the layer's order.
    """
    queues: list[FileQueue] = []
    small: dict[Digest, list[ChunkRange]] = {}
    for file in files:
        pieces = [
            ChunkRange(file, index, chunk_range(file.size, index))
            for index in sorted(missing[file.digest])
        ]
        if not pieces:
            continue
        if file.chunk_count() > 1:
            queues.append(tuple(RangeRequest((piece,)) for piece in pieces))
        else:
            # By layer: one request reads one range of one layer.
            small.setdefault(file.layer, []).extend(pieces)
    queues.extend(bundle for pieces in small.values() for bundle in _bundles(pieces))
    return sorted(
        queues, key=lambda file_queue: -sum(range_request.size for range_request in file_queue)
    )


def _bundles(pieces: Sequence[ChunkRange]) -> Iterable[FileQueue]:
    bundle: list[ChunkRange] = []
    size = 0
    for piece in pieces:
        if bundle and size + len(piece.range) > BUNDLE_BYTES:
            yield (RangeRequest(tuple(bundle)),)
            bundle, size = [], 0
        bundle.append(piece)
        size += len(piece.range)
    if bundle:
        yield (RangeRequest(tuple(bundle)),)


def choose_queue(waiting: Sequence[int], workers: Sequence[int], last: int | None) -> int | None:
    """The queue from which a free worker takes its next request; None when all are empty.

    `waiting[t]`: requests in queue t, `workers[t]`: workers on it, `last`: the worker's own queue.
    A worker stays on its queue, so files complete one after the other. When few queues are left, it takes the longest
    of those with the fewest workers, so all end together: of several workers on one file only one can hash.
    """
    open_queues = [file_queue for file_queue, count in enumerate(waiting) if count]
    if last in open_queues and workers[last] == 0 and len(open_queues) > LAST_QUEUES:
        return last
    return min(open_queues, key=lambda t: (workers[t], -waiting[t], t != last, t), default=None)


def run_length(waiting: int) -> int:
    """How many of a queue's `waiting` requests may be merged into one: fewer towards the end of the queue.

    A merged request occupies one worker; the last requests stay separate for whichever worker is free.
    """
    return max(1, min(RUN_CHUNKS, waiting // 2))


@dataclass(frozen=True, slots=True)
class SourceView:
    """One source as input of `choose_source`: when its backoff ends, and whether it is excluded for this request.

    `rate`: bytes per second of one transfer, measured by this pull; None before. `swarm`: the peers, which serve chunks
    as they receive them themselves; never compared with other sources, else a busy swarm would move to the origin.
    """

    backoff_until: float
    excluded: bool
    failures: int
    rate: float | None = None
    swarm: bool = False


def choose_source(
    views: Sequence[SourceView], now: float, min_rate: float = 0.0
) -> int | float | None:
    """The index of the source to use, the time at which one will be available (a float), or None when none is left.

    Among sources not in backoff: the one with the fewest failures on this request, then not too slow, then first in
    the configured order.
    """
    left = [index for index, view in enumerate(views) if not view.excluded]
    if not left:
        return None
    ready = [index for index in left if views[index].backoff_until <= now]
    if not ready:
        return min(views[index].backoff_until for index in left)
    return min(ready, key=lambda i: (views[i].failures, is_too_slow(views, i, now, min_rate), i))


def is_too_slow(views: Sequence[SourceView], index: int, now: float, min_rate: float) -> bool:
    """Whether to switch to another source: one measured much faster, or an unmeasured one if this is below `min_rate`.

    `min_rate`: bytes per second of one transfer; 0: never. Law: the only remaining source is never too slow, whatever
    its rate.
    """
    own = views[index].rate
    if own is None or views[index].swarm:
        return False
    # Only sources that could take over now: switching to one in backoff would stop the transfer for nothing.
    others = [
        view
        for other, view in enumerate(views)
        if other != index and not (view.excluded or view.swarm) and view.backoff_until <= now
    ]
    return any(
        own < min_rate if view.rate is None else own * MUCH_FASTER < view.rate for view in others
    )
