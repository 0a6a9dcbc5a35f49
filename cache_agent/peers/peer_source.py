"""The peer tier as a source: reads chunks from other nodes, and announces what this node fetches from upstream.

`PeerSource` comes before all other sources of a pull. For a chunk it never waits: it reads it from a peer, or raises
RetryLater (another node is fetching it: fetch another chunk meanwhile), or FetchUpstream (this node is to fetch it).
`Announced` wraps the upstream sources, so peers see the chunks being fetched.

Bytes from a peer prove nothing about who may read them, as from every source that names files by digest only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from cache_agent.chunks import chunk_range
from cache_agent.peers.announcements import ChunkId, FetchAnnouncements
from cache_agent.peers.chunk_planner import (
    LocalState,
    Peer,
    PeerLimits,
    Step,
    Take,
    UseUpstream,
    Wait,
    decide,
    ranked,
)
from cache_agent.peers.chunk_watch import ChunkListPoller, FileName
from cache_agent.peers.peer_client import PeerLink
from cache_agent.peers.rate import PacedStream, PeerTooSlow, RateBaseline
from cache_agent.peers.reputation import Offence, Reputation
from cache_agent.sources.decorators import Wrapped
from cache_agent.sources.source import ChunkRange, FetchUpstream, RetryLater, Tier
from cache_agent.sources.streams import chained
from cache_agent.store.partials import identity
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
)
from modelimage.ranges import ByteRange
from modelimage.record import RecordFile
from modelimage.repository import BlobStream

# With many pending chunks each is checked less often: checks cost CPU time, and none is urgent.
_PENDING_PER_SECOND: Final = 1000.0
_MOST_WAIT: Final = 2.0
_BUSY_SECONDS: Final = 0.25
# A stream closed from outside less than this many seconds after its last byte was cancelled: not the sender's fault.
_CANCELLED_SECONDS: Final = 1.0
_IDLE_LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class LocalPeer:
    """This node among its peers. `streams`: its concurrent transfers from all sources.

    `apart`: each zone fetches its own copy, and no chunk crosses zones.
    """

    id: str
    zone: str = ""
    streams: int = 4
    apart: bool = False
    rules: PeerLimits = field(default_factory=PeerLimits)


@dataclass
class _Waiting:
    """A chunk that this pull needs: `since` when, and `held`: since when some peer is known to have it."""

    since: float
    held: float | None = None


@dataclass
class PeerSource:
    """The peers as one source of one pull."""

    own: LocalPeer
    announcements: FetchAnnouncements
    watching: ChunkListPoller
    link: PeerLink
    reputation: Reputation
    pace: RateBaseline
    monotonic: Callable[[], float]
    name: str = "peers"
    tier: Tier = Tier.PEER
    authorizes: bool = False
    _names: dict[Digest, FileName] = field(default_factory=dict)
    _waiting: dict[ChunkId, _Waiting] = field(default_factory=dict)
    _busy: dict[str, float] = field(default_factory=dict)
    _idle: tuple[float, bool] = (float("-inf"), False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        """See `Source.open`. For several small files, the decision on the first one is used for all."""
        name, chunk = self._chunk(pieces[0])
        self._want(chunk)
        match self._step(name, chunk):
            case Take(peer):
                with self._from(peer, name, pieces) as stream:
                    yield stream
                self.done(pieces)
            case UseUpstream():
                raise FetchUpstream("this node fetches it from upstream")
            case Wait(seconds, in_line):
                raise self._not_yet(seconds, in_line=in_line)

    def done(self, pieces: Sequence[ChunkRange]) -> None:
        """Forget chunks that arrived, from any source."""
        for piece in pieces:
            chunk = self._chunk(piece)[1]
            with self._lock:
                self._waiting.pop(chunk, None)

    def announce(self, pieces: Sequence[ChunkRange], *, ended: bool = False) -> None:
        """Announce that this node fetches these from upstream, or with `ended` no longer does, by their first chunk."""
        chunk = self._chunk(pieces[0])[1]
        (self.announcements.end if ended else self.announcements.begin)(chunk)

    # -- deciding ----------------------------------------------------------------------------

    def _step(self, name: FileName, chunk: ChunkId) -> Step:
        self.watching.refresh(name)
        step = self._decide(name, chunk)
        if not isinstance(step, UseUpstream):
            # An announcement from an earlier decision would keep other nodes waiting.
            self.announcements.end(chunk)
            return step
        # Announce first, then poll again: of two nodes that decide concurrently at least one sees the other's
        # announcement. In the other order both could miss it and fetch the same chunk.
        self.announcements.intend(chunk)
        self.watching.refresh(name, since=self.monotonic())
        rivals = [peer.id for peer in self._peers(name, chunk) if peer.coming and peer.moving]
        again = self._decide(name, chunk)
        if isinstance(again, UseUpstream):
            return again
        # If both see each other, both must not withdraw: the one ranked first keeps its announcement.
        first = ranked(chunk.text, [self.own.id, *rivals])[0] == self.own.id
        if isinstance(again, Take) or not first:
            self.announcements.end(chunk)
        return again

    def _decide(self, name: FileName, chunk: ChunkId) -> Step:
        peers = self._peers(name, chunk)
        now = self.monotonic()
        waiting = self._want(chunk)
        if waiting.held is None and any(peer.has for peer in peers):
            waiting.held = now
        # Without peers upstream isn't shared with anyone; the engine alone limits the transfers.
        free = self._slots(name) - self.announcements.busy() if peers else 1
        here = LocalState(
            self.own.id,
            self.own.zone,
            waited=now - waiting.since,
            held=now - waiting.held if waiting.held is not None else 0.0,
            idle=self._is_idle(name),
            # This chunk's own announcement must not use up the slot that it asks for.
            slots=free + self.announcements.is_up(chunk),
        )
        return decide(chunk.text, here, peers, now, self.own.rules)

    def _slots(self, name: FileName) -> int:
        """Concurrent transfers from upstream: all nodes together have as many as one node alone.

        So a node's chunks arrive one after the other, and each is passed on while the next one arrives.
        """
        fetching = sum(not have.complete for _, have, _ in self.watching.views(name))
        return -(-self.own.streams // (fetching + 1))

    def _peers(self, name: FileName, chunk: ChunkId) -> list[Peer]:
        return [
            Peer(
                member.id,
                member.zone,
                has=bool(have.have >> chunk.index & 1),
                coming=bool(have.coming >> chunk.index & 1),
                moving=moving,
                free_at=self._busy.get(member.id, 0.0),
            )
            for member, have, moving in self.watching.views(name)
            if not self.own.apart or member.zone == self.own.zone
        ]

    def _is_idle(self, name: FileName) -> bool:
        """Whether none of this node's own chunks is pending. Cached for a while: it iterates over all chunks."""
        now = self.monotonic()
        if now - self._idle[0] < _IDLE_LOOK_SECONDS:
            return self._idle[1]
        with self._lock:
            waiting = list(self._waiting)
        members = [
            self.own.id,
            *(peer.id for peer, _, moving in self.watching.views(name) if moving),
        ]
        idle = not any(
            ranked(chunk.text, members)[0] == self.own.id and not self.announcements.is_up(chunk)
            for chunk in waiting
            if chunk.file == name.identity
        )
        # One assignment without the lock: a lost update costs one more computation.
        self._idle = (now, idle)
        return idle

    def _want(self, chunk: ChunkId) -> _Waiting:
        with self._lock:
            return self._waiting.setdefault(chunk, _Waiting(self.monotonic()))

    def _chunk(self, piece: ChunkRange) -> tuple[FileName, ChunkId]:
        # Without the lock: threads that race here compute equal values.
        name = self._names.get(piece.file.digest)
        if name is None:
            name = self._names[piece.file.digest] = _name(piece.file)
        return name, ChunkId(name.identity, piece.index)

    def _not_yet(self, seconds: float, *, in_line: bool = False) -> RetryLater:
        crowd = len(self._waiting) / _PENDING_PER_SECOND
        after = min(_MOST_WAIT, seconds + crowd)
        return RetryLater("another node is fetching it", after=after, in_line=in_line)

    # -- taking ------------------------------------------------------------------------------

    @contextmanager
    def _from(
        self, peer: str, name: FileName, pieces: Sequence[ChunkRange]
    ) -> Iterator[BlobStream]:
        """A stream from one peer. Errors count against that peer only; the chunk is retried from another one.

        Raises RetryLater for all of them.
        """
        stream: PacedStream | None = None
        try:
            with chained(pieces, lambda piece: self._open(peer, piece)) as raw:
                stream = PacedStream(raw, self.pace, self.monotonic)
                yield stream
            # Only after success: a slow peer must not lower the limit that it is judged by.
            self.pace.note(stream.received, stream.seconds)
        # RetryLater in every case: the engine would count other errors against all peers together.
        except RateLimited as error:
            pause = _BUSY_SECONDS if error.retry_after is None else error.retry_after
            self._busy[peer] = self.monotonic() + pause
            raise self._not_yet(0.0) from error
        except NotFound as error:
            self.watching.doubt(peer, name, pieces[0].index)
            raise self._not_yet(0.0) from error
        except (DigestMismatch, AccessDenied, RemoteRefused, Unreachable) as error:
            # Closed by this node while bytes were arriving: a cancelled pull, for which no peer is penalized.
            if stream is None or not stream.closed or stream.quiet >= _CANCELLED_SECONDS:
                self.reputation.note(peer, _offence(error))
            raise RetryLater(f"peer {peer}: {error.message}", after=0.0) from error

    @contextmanager
    def _open(self, peer: str, piece: ChunkRange) -> Iterator[BlobStream]:
        name, chunk = self._chunk(piece)
        start = chunk_range(piece.file.size, piece.index).start
        wanted = ByteRange(piece.range.start - start, piece.range.stop - start)
        with self.link.chunk(peer, name.sha256, chunk, wanted) as stream:
            yield stream


def _offence(error: Exception) -> Offence:
    match error:
        case DigestMismatch():
            return Offence.LIED
        case PeerTooSlow():
            return Offence.SLOW
        case AccessDenied():
            return Offence.REFUSED
        case _:
            return Offence.STALLED


def _name(file: RecordFile) -> FileName:
    return FileName(file.digest, identity(file), file.chunk_count())


@dataclass(frozen=True)
class Announced(Wrapped):
    """An upstream source whose transfers are announced to peers."""

    peers: PeerSource

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        """See `Source.open`."""
        self.peers.announce(pieces)
        try:
            with self.inner.open(pieces) as stream:
                yield stream
        finally:
            self.peers.announce(pieces, ended=True)
        # Only after success: a chunk that failed is still pending.
        self.peers.done(pieces)
