"""What to fetch in which order, and from where next. Pure: no threads, no clock, no sockets.

Files are cut into spans: one chunk of a large file, or several small files of one layer in one request. The spans
of a file form a track; a worker stays on its track, since sha256 must see a file's bytes in order and is cheapest
while they are in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cache_agent.chunks import chunk_range
from cache_agent.sources.source import ChunkRange
from modelimage.digest import Digest
from modelimage.record import CHUNK_SIZE, RecordFile

# How many times faster another source must be to lose what has come of a chunk for it.
MUCH_FASTER: Final = 4.0
# A request for several small files asks for no more than this.
BUNDLE_BYTES: Final = CHUNK_SIZE
# One request for several chunks in a row spares the server and the line a start for each.
RUN_CHUNKS: Final = 8
# So few tracks are balanced against each other.
LAST_TRACKS: Final = 8


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """What one request asks for: pieces of one layer in the layer's order."""

    pieces: tuple[ChunkRange, ...]

    @property
    def size(self) -> int:
        return sum(len(piece.range) for piece in self.pieces)

    @property
    def at_stake(self) -> int:
        """The most that is lost when it ends early: pieces that came whole are kept."""
        return max(len(piece.range) for piece in self.pieces)


FileQueue = tuple[RangeRequest, ...]


def unique_files(files: Iterable[RecordFile]) -> list[RecordFile]:
    """The first file of each sha256, in order: what a model holds under two names is fetched once."""
    first: dict[Digest, RecordFile] = {}
    for file in files:
        first.setdefault(file.digest, file)
    return list(first.values())


def plan_queues(
    files: Sequence[RecordFile], missing: Mapping[Digest, Collection[int]]
) -> list[FileQueue]:
    """Tracks that together cover exactly the missing chunks (by sha256 of the file), largest first.

    `files` are in the record's order, which is a layer's order.
    """
    tracks: list[FileQueue] = []
    small: dict[Digest, list[ChunkRange]] = {}
    for file in files:
        pieces = [
            ChunkRange(file, index, chunk_range(file.size, index))
            for index in sorted(missing[file.digest])
        ]
        if not pieces:
            continue
        if file.chunk_count() > 1:
            tracks.append(tuple(RangeRequest((piece,)) for piece in pieces))
        else:
            small.setdefault(file.layer, []).extend(pieces)
    tracks.extend(bundle for pieces in small.values() for bundle in _bundles(pieces))
    return sorted(
        tracks, key=lambda file_queue: -sum(range_request.size for range_request in file_queue)
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
    """The track a free worker takes its next span from; None when nothing waits.

    `waiting[t]` spans of track t wait, `workers[t]` workers are on it, `last` is the worker's own track.
    It stays on its own, so that files land one after the other. When few are left it goes where most is left of those
    that nobody is on, so that all end together: of several workers on one file only one can hash.
    """
    open_tracks = [file_queue for file_queue, count in enumerate(waiting) if count]
    if last in open_tracks and workers[last] == 0 and len(open_tracks) > LAST_TRACKS:
        return last
    return min(open_tracks, key=lambda t: (workers[t], -waiting[t], t != last, t), default=None)


def run_length(waiting: int) -> int:
    """How many spans in a row one request may ask for, of a track where so many wait: fewer towards its end.

    What is asked for in one request only one worker gets; the last ones are for whichever is free.
    """
    return max(1, min(RUN_CHUNKS, waiting // 2))


@dataclass(frozen=True, slots=True)
class SourceView:
    """What choosing needs of one source: until when it rests, and whether this span may ask it again.

    `rate`: bytes a second of one transfer, as this pull has seen it; None while it hasn't. `swarm`: it gives what other
    nodes get, at their pace; it is compared with no other source, else a busy swarm would run to the origin.
    """

    rests_until: float
    excluded: bool
    failures: int
    rate: float | None = None
    swarm: bool = False


def choose_source(
    views: Sequence[SourceView], now: float, min_rate: float = 0.0
) -> int | float | None:
    """Which source to ask (its index), when to look again (a time, as float), or None when none is left.

    The first that failed least on this span, isn't too slow and doesn't rest: order is preference, failure and
    slowness are steps down.
    """
    left = [index for index, view in enumerate(views) if not view.excluded]
    if not left:
        return None
    ready = [index for index in left if views[index].rests_until <= now]
    if not ready:
        return min(views[index].rests_until for index in left)
    return min(ready, key=lambda i: (views[i].failures, is_too_slow(views, i, now, min_rate), i))


def is_too_slow(views: Sequence[SourceView], index: int, now: float, min_rate: float) -> bool:
    """Whether another source is to be asked instead: one known to be much faster, or any untried one when this crawls.

    `min_rate`: bytes a second of one transfer below which it is worth trying another; 0 for never. Law: the only source
    left to ask isn't too slow, however slow it is.
    """
    own = views[index].rate
    if own is None or views[index].swarm:
        return False
    others = [
        view
        for other, view in enumerate(views)
        if other != index and not (view.excluded or view.swarm) and view.rests_until <= now
    ]
    return any(
        own < min_rate if view.rate is None else own * MUCH_FASTER < view.rate for view in others
    )
