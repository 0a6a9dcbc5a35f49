"""Registries that send a byte now and then: an answer has a time as a whole, weights as long as they make progress."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from modelimage.access import Access, open_repository
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import Unreachable
from modelimage.reference import RegistryReference
from modelimage.registry.client import RegistryRepository
from modelimage.registry.connections import Connections
from modelimage.registry.network_options import Timeouts
from modelimage.registry.retry import Environment, RetryPolicy
from modelimage.repository import BlobStream
from modelimage.resolve import read_blob
from tests.cache_agent.peers.certificates import Authority

# Far above any test's time: only the limit for the whole answer can end an exchange.
ENDLESS = 86400.0
QUICK = 0.2  # seconds
BLOB = Descriptor("application/octet-stream", Digest.of(b"x" * 1000), 1000)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: application/json\r\n\r\n"
PARTS = {
    "status": b"",
    "headers": b"HTTP/1.1 200 OK\r\n",
    "body": HEAD,
}


class Trickling:
    """Answers the start of an answer, then a byte every few milliseconds until the client goes."""

    def __init__(self, start: bytes, context: ssl.SSLContext | None = None) -> None:
        self._start, self._context = start, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Trickling:
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for each in self._threads:
            each.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            wrapped = connection
            if self._context:
                wrapped = self._context.wrap_socket(connection, server_side=True)
            with wrapped:
                wrapped.recv(65536)
                wrapped.sendall(self._start)
                while not self._stop.wait(0.005):
                    wrapped.sendall(b"x")


def hasty(**given: float) -> Connections:
    """One try, and as little patience as the test says."""
    timeouts = Timeouts(connect=ENDLESS, stall=ENDLESS, **given)
    return Connections(timeouts=timeouts, policy=RetryPolicy(attempts=1))


def read(repository: RegistryRepository) -> None:
    with repository.blob(BLOB) as stream:
        while stream.readinto(memoryview(bytearray(100))):
            pass


METADATA: dict[str, Callable[[RegistryRepository], object]] = {
    "resolve": lambda repository: repository.resolve("v1"),
    "manifest": lambda repository: repository.manifest(BLOB),
    "tags": lambda repository: repository.tags(),
    "referrers": lambda repository: repository.referrers(BLOB.digest),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", METADATA)
def test_a_question_ends_whatever_part_of_the_answer_is_slow(name: str, part: str) -> None:
    if (name, part) == ("resolve", "body"):
        return  # the answer to a HEAD request has none
    with Trickling(PARTS[part]) as registry:
        access = Access(connections=hasty(answer=QUICK))
        repository = open_repository(RegistryReference(registry.host, "m"), access)
        with pytest.raises(Unreachable):
            METADATA[name](repository)


@pytest.mark.parametrize("part", PARTS)
def test_over_tls_too(part: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    issued = authority.issue("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    with Trickling(PARTS[part], context) as registry:
        access = Access(connections=hasty(answer=QUICK), ca_file=authority.certificate)
        host = registry.host.replace("127.0.0.1", "localhost")
        repository = open_repository(RegistryReference(host, "m"), access)
        with pytest.raises(Unreachable):
            repository.manifest(BLOB)


def test_a_blob_may_take_longer_than_an_answer() -> None:
    """Weights follow progress: here 100 bytes come in a hundred slices, later than any answer may."""
    with Trickling(HEAD) as registry:
        access = Access(connections=hasty(answer=QUICK))
        repository = open_repository(RegistryReference(registry.host, "m"), access)
        with repository.blob(BLOB) as stream:
            got = 0
            while got < 100:
                got += stream.readinto(memoryview(bytearray(1)))


def test_a_question_of_several_requests_has_one_end() -> None:
    """`Access.within`: streams end with it as well, and no retry begins after it."""
    with Trickling(HEAD) as registry:
        access = Access(connections=hasty(answer=ENDLESS)).within(QUICK)
        repository = open_repository(RegistryReference(registry.host, "m"), access)
        with pytest.raises(Unreachable):
            read(repository)
        with pytest.raises(Unreachable):
            repository.manifest(BLOB)


def test_no_retry_is_waited_for_that_comes_too_late() -> None:
    slept: list[float] = []
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{deaf.getsockname()[1]}"
        connections = Connections(
            policy=RetryPolicy(attempts=5, base=100, cap=100),
            environment=Environment(sleep=slept.append, jitter=lambda: 0.0),
        )
        access = Access(connections=connections).within(10)
        with pytest.raises(Unreachable, match="refused"):
            open_repository(RegistryReference(host, "m"), access).tags()
    assert slept == []


class SlowReader:
    """A reader whose streams give one byte at a time."""

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: object = None) -> Iterator[BlobStream]:
        yield OneByte()


class OneByte:
    def readinto(self, buffer: memoryview, /) -> int:
        buffer[:1] = b"x"
        return 1

    def close(self) -> None:
        """Nothing is open."""


def test_a_small_blob_has_a_slowest_speed() -> None:
    ticks = itertools.count()
    with pytest.raises(Unreachable, match="slowly"):
        read_blob(SlowReader(), BLOB, limit=1000, clock=lambda: next(ticks) * 1.0)  # type: ignore[arg-type]
    assert next(ticks) < 100
