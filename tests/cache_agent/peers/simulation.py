"""A cluster in virtual time: the real PeerSource, Board and Watching of each node, over a network made up here.

A node works as a pull does: a few workers, each asks the peers for a chunk, is told to wait, takes it, or fetches it
upstream. Nothing sleeps; what happens next is the earliest event. Faults are classes that change what a node does.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from cache_agent.chunks import chunk_range
from cache_agent.peers.announcements import ChunkId, FetchAnnouncements
from cache_agent.peers.chunk_planner import PeerLimits
from cache_agent.peers.chunk_watch import ChunkListPoller
from cache_agent.peers.peer_source import Announced, LocalPeer, PeerSource
from cache_agent.peers.rate import RateBaseline
from cache_agent.peers.reputation import Reputation
from cache_agent.peers.values import Have, Member, bits
from cache_agent.sources.source import ChunkRange, FetchUpstream, RetryLater, Tier
from cache_agent.store.partials import identity
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    NotFound,
    Unreachable,
    WeightyardError,
)
from modelimage.ranges import ByteRange
from modelimage.record import CHUNK_SIZE, RecordFile, Role
from modelimage.repository import BlobStream
from tests.cache_agent.peers.serving import Inline

UPSTREAM_SECONDS = 4.0
PEER_SECONDS = 0.5
WORKERS = 4


def big_file(chunks: int) -> RecordFile:
    """A file of so many chunks; only its names matter here."""
    digest = Digest.of(b"big file")
    return RecordFile(
        "big", chunks * CHUNK_SIZE, digest, Role.WEIGHT, digest, ("ab" * 32,) * chunks
    )


class Clock:
    """Virtual time and what is to happen in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def run(self, until: float, done: Callable[[], bool]) -> None:
        """Let things happen until `done`, or fail when `until` comes first."""
        while not done():
            assert self._events, "nothing happens any more"
            self.now, _, event = heapq.heappop(self._events)
            assert self.now < until, f"not done by {until:g} s"
            event()


class Bytes:
    """A stream of zeros that is all there at once."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readinto(self, buffer: memoryview, /) -> int:
        count = min(self.left, len(buffer))
        self.left -= count
        return count

    def close(self) -> None:
        pass


@dataclass
class Origin:
    """Where the image is. `asked` counts how often each chunk was fetched; `away`: it answers these nodes no more."""

    clock: Clock
    name: str = "origin"
    tier: Tier = Tier.REGISTRY
    authorizes: bool = True
    asked: Counter[int] = field(default_factory=Counter)
    away: set[str] = field(default_factory=set)

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        self.asked[pieces[0].index] += 1
        yield Bytes(len(pieces[0].range))


@dataclass
class Node:
    """A node of the simulation, well behaved. Subclasses are the faults."""

    name: str
    cluster: Cluster
    zone: str = ""
    upstream_seconds: float = UPSTREAM_SECONDS
    has: set[int] = field(default_factory=set)
    running: bool = False
    received: int = 0
    finished: float | None = None
    announcements: FetchAnnouncements = field(init=False)
    source: PeerSource = field(init=False)
    waiting: list[tuple[float, int]] = field(default_factory=list)
    reputation: Reputation = field(init=False)

    def __post_init__(self) -> None:
        clock = self.cluster.clock
        self.announcements, self.reputation = FetchAnnouncements(clock), Reputation(clock)
        link = Link(self)
        watching = ChunkListPoller(
            self.members, link, self.reputation, Inline(), clock, self.cluster.rules.stall_timeout
        )
        own = LocalPeer(self.name, self.zone, WORKERS, self.cluster.apart, self.cluster.rules)
        self.source = PeerSource(
            own, self.announcements, watching, link, self.reputation, RateBaseline(), clock
        )
        self.upstream = Announced(self.cluster.origin, self.source)

    def members(self) -> list[Member]:
        return [Member(n.name, n.zone) for n in self.cluster.nodes.values() if n is not self]

    # -- what peers see; the faults change it ------------------------------------------------

    def answer(self, file: RecordFile) -> Have:
        if not self.running and not self.has:
            raise NotFound("takes no part")
        coming = bits(self.announcements.coming(identity(file)) - self.has)
        return Have(file.chunk_count(), bits(self.has), coming, self.received, self.zone)

    def gives(self, index: int) -> tuple[float, WeightyardError | None]:
        """How long giving a chunk takes, and what goes wrong in the end."""
        return PEER_SECONDS, None

    # -- its own pull ------------------------------------------------------------------------

    def start(self) -> None:
        self.running = True
        self.waiting = [
            (0.0, n) for n in range(self.cluster.file.chunk_count()) if n not in self.has
        ]
        for _ in range(WORKERS):
            self.cluster.clock.after(0.0, self.work)

    def stop(self) -> None:
        """As if killed."""
        self.running, self.has = False, set()
        self.cluster.nodes.pop(self.name, None)

    def work(self) -> None:
        """One worker looks for its next chunk."""
        if not self.running:
            return
        clock = self.cluster.clock
        if not self.waiting:
            return
        due, index = min(self.waiting)
        if due > clock.now:
            clock.after(due - clock.now, self.work)
            return
        self.waiting.remove((due, index))
        piece = ChunkRange(self.cluster.file, index, chunk_range(self.cluster.file.size, index))
        stack = ExitStack()
        try:
            stack.enter_context(self.source.open([piece]))
        except RetryLater as later:
            self.put_off(index, later.after)
        except FetchUpstream:
            self.fetch(piece)
        else:
            giver = self.cluster.givers.pop()
            seconds, error = giver.gives(index)
            clock.after(seconds, lambda: self.end(stack, piece, seconds, error))

    def fetch(self, piece: ChunkRange) -> None:
        stack = ExitStack()
        stack.enter_context(self.upstream.open([piece]))
        away = self.name in self.cluster.origin.away
        error = Unreachable("the origin is away") if away else None
        seconds = self.upstream_seconds
        for part in range(1, 4):
            self.cluster.clock.after(seconds * part / 4, self.progress)
        self.cluster.clock.after(seconds, lambda: self.end(stack, piece, seconds, error))

    def progress(self) -> None:
        self.received += 1

    def end(
        self, stack: ExitStack, piece: ChunkRange, seconds: float, error: WeightyardError | None
    ) -> None:
        if not self.running:
            return
        try:
            with stack:
                if error is not None:
                    raise error
        except WeightyardError as failed:
            self.put_off(piece.index, failed.after if isinstance(failed, RetryLater) else 1.0)
            return
        self.has.add(piece.index)
        self.received += 1
        if len(self.has) == self.cluster.file.chunk_count():
            self.finished = self.cluster.clock.now
        self.work()

    def put_off(self, index: int, seconds: float) -> None:
        self.waiting.append((self.cluster.clock.now + max(seconds, 0.001), index))
        self.cluster.clock.after(0.0, self.work)


class LyingPeer(Node):
    """Says that it has everything, and sends wrong bytes."""

    def answer(self, file: RecordFile) -> Have:
        return Have(file.chunk_count(), (1 << file.chunk_count()) - 1, zone=self.zone)

    def gives(self, index: int) -> tuple[float, WeightyardError | None]:
        return PEER_SECONDS, DigestMismatch("wrong bytes")


class StallingPeer(Node):
    """Says that it has everything, and sends nothing of it."""

    def answer(self, file: RecordFile) -> Have:
        return Have(file.chunk_count(), (1 << file.chunk_count()) - 1, zone=self.zone)

    def gives(self, index: int) -> tuple[float, WeightyardError | None]:
        return 10.0, Unreachable("no progress")


class IdlePeer(Node):
    """Takes part, owns its share, says that all of it is coming, and never fetches any."""

    def answer(self, file: RecordFile) -> Have:
        return Have(file.chunk_count(), 0, (1 << file.chunk_count()) - 1, zone=self.zone)


class DeadPeer(Node):
    """Is a member and doesn't answer."""

    def answer(self, file: RecordFile) -> Have:
        raise Unreachable("no route to host")


class RefusingPeer(Node):
    """Has another key, or another clock."""

    def answer(self, file: RecordFile) -> Have:
        raise AccessDenied("the signature is wrong")


@dataclass
class Link:
    """How one node asks another: through what the cluster's network lets pass."""

    asker: Node

    def have(self, peer: str, sha256: Digest, file: Digest) -> Have:
        return self._reach(peer).answer(self.asker.cluster.file)

    def chunk(
        self, peer: str, sha256: Digest, chunk: ChunkId, wanted: ByteRange
    ) -> AbstractContextManager[BlobStream]:
        return self._chunk(peer, len(wanted))

    @contextmanager
    def _chunk(self, peer: str, size: int) -> Iterator[BlobStream]:
        self.asker.cluster.givers.append(self._reach(peer))
        self.asker.cluster.crossed += self._reach(peer).zone != self.asker.zone
        yield Bytes(size)

    def _reach(self, peer: str) -> Node:
        cluster = self.asker.cluster
        node = cluster.nodes.get(peer)
        if node is None or cluster.is_cut(self.asker.name, peer):
            raise Unreachable(f"no route to {peer}")
        return node


@dataclass
class Cluster:
    """Nodes, an origin and a network. `islands`: sets of nodes that reach only each other (PartitionedNodes)."""

    chunks: int
    apart: bool = False
    rules: PeerLimits = field(default_factory=PeerLimits)
    clock: Clock = field(default_factory=Clock)
    nodes: dict[str, Node] = field(default_factory=dict)
    islands: list[set[str]] = field(default_factory=list)
    givers: list[Node] = field(default_factory=list)
    crossed: int = 0
    origin: Origin = field(init=False)
    file: RecordFile = field(init=False)

    def __post_init__(self) -> None:
        self.origin, self.file = Origin(self.clock), big_file(self.chunks)

    def add(
        self, kind: type[Node] = Node, *, zone: str = "", seconds: float = UPSTREAM_SECONDS
    ) -> Node:
        """A node that doesn't pull yet."""
        node = kind(f"10.0.0.{len(self.nodes) + 1}:7946", self, zone, seconds)
        self.nodes[node.name] = node
        return node

    def pull(self, nodes: Sequence[Node], *, apart: float = 0.0, within: float = 600.0) -> float:
        """All pull, one `apart` seconds after the other; the seconds until all have it."""
        for number, node in enumerate(nodes):
            self.clock.after(number * apart, node.start)
        began = self.clock.now
        self.clock.run(began + within, lambda: all(node.finished is not None for node in nodes))
        return self.clock.now - began

    def is_cut(self, one: str, other: str) -> bool:
        return any((one in island) != (other in island) for island in self.islands)

    @property
    def copies(self) -> float:
        return self.origin.asked.total() / self.chunks
