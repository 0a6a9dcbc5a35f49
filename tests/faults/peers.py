"""Peers that lie, stall or flood while a node pulls: its pulls end right, from the registry; the peer is ejected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial

from cache_agent.net.sockets import connect
from tests.faults.campaign import Kind
from tests.faults.site import Site
from tests.faults.stage import Round
from tests.servers import lying_registry as lying
from tests.servers.faulty_registry import Fault, FaultyRegistry, HungUp, Seen
from tests.servers.httpserver import Handler
from tests.servers.ports import free_port

MOST = 1 << 30
KEY = "a key that only the campaign's nodes share, and nobody else"
EJECTED = "weightyard_peers_ejected_total"


def chunks(request: Seen) -> bool:
    return "/chunks/" in request.path


class WrongChunks(Fault):
    """Every chunk has other bytes, of the right length."""

    def answer_body(
        self, request: Seen, body: Iterator[bytes], handler: Handler
    ) -> Iterator[bytes]:
        return (bytes(len(piece)) for piece in body) if chunks(request) else body


class ShortChunks(Fault):
    """Every chunk ends early, with its connection."""

    def answer_body(
        self, request: Seen, body: Iterator[bytes], handler: Handler
    ) -> Iterator[bytes]:
        return self._cut(body) if chunks(request) else body

    def _cut(self, body: Iterator[bytes]) -> Iterator[bytes]:
        yield next(body, b"")[:100]
        raise HungUp


class StalledChunks(Fault):
    """Every chunk stops coming after some bytes, and nobody hangs up."""

    def answer_body(
        self, request: Seen, body: Iterator[bytes], handler: Handler
    ) -> Iterator[bytes]:
        return self._stop(body, handler) if chunks(request) else body

    def _stop(self, body: Iterator[bytes], handler: Handler) -> Iterator[bytes]:
        yield next(body, b"")[:100]
        handler.wfile.flush()
        # The client's hanging up is what ends it.
        handler.connection.recv(1)
        raise HungUp


def lied_to_by_a_peer(make: Callable[[Round], Fault], ejects: bool, fresh: Round) -> None:
    """`ejects`: whether one offence is enough to be asked no more for a while."""
    site, peer = fresh.site, fresh.another()
    listen = f"127.0.0.1:{free_port()}"
    with FaultyRegistry(listen) as proxy:
        _introduce(peer, listen, advertise=proxy.host, other=proxy.host)
        address = f"127.0.0.1:{free_port()}"
        _introduce(site, address, advertise=address, other=proxy.host)
        peer.start()
        for number in range(len(peer.models)):
            peer.pull(number)
        proxy.faults = (make(fresh),)
        site.start()
        for number in range(len(site.models)):
            assert site.pull(number).key == site.models[number].key
            site.whole(number)
        assert proxy.seen, "the peer was not asked"
        assert not ejects or _counted(site, EJECTED) > 0
        site.lease(0, "lease")
        site.assert_alive()
        proxy.faults = ()
        site.prove()
        peer.prove()


def _introduce(site: Site, listen: str, *, advertise: str, other: str) -> None:
    (site.home / "key").write_text(KEY + "\n")
    site.settings.update(
        WEIGHTYARD_PEERS__LISTEN=listen,
        WEIGHTYARD_PEERS__ADVERTISE=advertise,
        WEIGHTYARD_PEERS__MEMBERS=json.dumps([{"address": other}]),
        WEIGHTYARD_PEERS__KEY_FILE=str(site.home / "key"),
        WEIGHTYARD_PEERS__STALL_SECONDS="1",
        WEIGHTYARD_TIERS__ORDER="[peer, registry]",
    )


def _counted(site: Site, name: str) -> float:
    """The sum of a counter over its labels."""
    with closing(connect(site.paths.socket, None)) as client, client.makefile("rwb") as stream:
        stream.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        stream.flush()
        lines = stream.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


MAKERS: Mapping[str, tuple[Callable[[Round], Fault], bool]] = {
    "wrong bytes": (lambda _: WrongChunks(), True),
    "chunks that are short": (lambda _: ShortChunks(), True),
    "chunks that stop": (lambda _: StalledChunks(), True),
    "bodies that never end": (lambda _: lying.Endless(times=MOST), True),
    "no HTTP": (lambda fresh: lying.Raw(fresh.rng.choice(lying.GARBAGE), times=MOST), False),
    "chunks that it only claims to have": (lambda _: lying.Status(404, chunks, times=MOST), False),
    "answers of any length": (
        lambda fresh: lying.WrongLength(fresh.rng.choice(["-1", "0", "7", "9" * 30]), chunks, times=MOST),
        False,
    ),
    "waits of any length": (
        lambda fresh: lying.Status(429, times=MOST, Retry_After=fresh.rng.choice(["86400", "1e99", "nan", "-5"])),
        False,
    ),
}  # fmt: skip

KINDS = tuple(
    Kind(f"peer: {name}", partial(lied_to_by_a_peer, make, ejects))
    for name, (make, ejects) in MAKERS.items()
)
