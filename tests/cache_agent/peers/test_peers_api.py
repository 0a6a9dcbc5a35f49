"""What a node gives its peers over real HTTP: to whom, of which files, and what it refuses."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

from cache_agent.node.node import Node
from cache_agent.peers.announcements import ChunkId
from cache_agent.peers.peer_client import PeerClient, have_path
from cache_agent.peers.request_signatures import Key, SignedRequest, Stamp, sign
from cache_agent.peers.values import Have
from cache_agent.servers.peers.servable_chunks import ServableRange
from cache_agent.store.partials import identity
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.ranges import ByteRange
from modelimage.record import CHUNK_SIZE, Record, RecordFile
from modelimage.repository import BlobStream
from tests.cache_agent.faults import BreaksAfter
from tests.cache_agent.images import MemoryImage, make_record, noise, simple_image
from tests.cache_agent.nodes import PATIENT, NodeFactory, pull
from tests.cache_agent.peers.certificates import Authority
from tests.cache_agent.peers.serving import KEY, Serving, serving
from tests.servers.process import wait_until

DATA = noise(CHUNK_SIZE + 5000, 1)
PLACE = "reg.test/m"


@cache
def model() -> tuple[Record, dict[Digest, bytes]]:
    return make_record([{"model.safetensors": DATA}])


@pytest.fixture
def file() -> RecordFile:
    return model()[0].files[0]


@pytest.fixture
def warm(open_node: NodeFactory) -> Node:
    """A node that has pulled the model."""
    record, blobs = model()
    node = open_node({PLACE: MemoryImage.of([record], blobs)})
    pull(node)
    return node


@pytest.fixture
def server(warm: Node) -> Iterator[Serving]:
    with serving(warm, public={PLACE}) as served:
        yield served


def chunk_of(
    client: PeerClient, peer: str, file: RecordFile, index: int, wanted: ByteRange
) -> bytes:
    out = bytearray()
    with client.chunk(peer, file.digest, ChunkId(identity(file), index), wanted) as stream:
        buffer = memoryview(bytearray(100_000))
        while count := stream.readinto(buffer):
            out += buffer[:count]
    return bytes(out)


def test_a_stored_file_is_given_by_chunk_and_range(server: Serving, file: RecordFile) -> None:
    client = server.client()
    have = client.have(server.name, file.digest, identity(file))
    assert have == Have(2, 3, 0, len(DATA), "zone-a")
    assert have.complete
    whole = ByteRange(0, 5000)
    assert chunk_of(client, server.name, file, 1, whole) == DATA[CHUNK_SIZE:]
    part = ByteRange(10, 200_000)
    assert chunk_of(client, server.name, file, 0, part) == DATA[10:200_000]
    wait_until(lambda: server.told.sent == [5000, 199_990], what="count of what was sent")


def test_a_file_that_is_on_its_way_is_given_as_far_as_it_is_verified(
    open_node: NodeFactory,
) -> None:
    image, record, contents = simple_image(weights=[CHUNK_SIZE + 1000])
    file = next(each for each in record.files if each.chunk_count() == 2)
    fault = BreaksAfter(image, file.layer, CHUNK_SIZE + 600, hang=True)
    node = open_node({PLACE: fault}, engine=PATIENT)
    thread = threading.Thread(target=lambda: _until_cancelled(node))
    thread.start()
    fault.hanging.wait()
    with serving(node, public={PLACE}) as server:
        server.announcements.begin(ChunkId(identity(file), 1))
        client = server.client()
        with pytest.raises(NotFound):
            client.have(server.name, file.digest, identity(file))  # nobody said that it is public
        server.announcements.publish([identity(file)])
        have = client.have(server.name, file.digest, identity(file))
        assert (have.count, have.have, have.coming) == (2, 1, 2)
        assert CHUNK_SIZE <= have.received < file.size
        wanted = ByteRange(0, 1000)
        assert chunk_of(client, server.name, file, 0, wanted) == contents[file.path][:1000]
        with pytest.raises(NotFound):
            chunk_of(client, server.name, file, 1, ByteRange(0, 1))
    node.puller.cancel_all()
    thread.join()


def _until_cancelled(node: Node) -> None:
    with pytest.raises(WeightyardError):
        pull(node)


def test_a_forged_records_claims_are_another_file(server: Serving, file: RecordFile) -> None:
    claims = RecordFile(file.path, file.size, file.digest, file.role, file.layer, ("0" * 64,) * 2)
    with pytest.raises(NotFound):
        server.client().have(server.name, file.digest, identity(claims))
    with pytest.raises(NotFound):
        server.client().have(server.name, file.layer, identity(file))


def test_forged_signature(server: Serving, file: RecordFile) -> None:
    stranger = server.client(Key(b"a key that only a stranger has...."))
    with pytest.raises(AccessDenied, match="is wrong"):
        stranger.have(server.name, file.digest, identity(file))
    assert server.told.refused_for == ["signature"]


def test_replayed_request(server: Serving, file: RecordFile) -> None:
    again = server.client(nonce=lambda: "always the same".replace(" ", "-"))
    again.have(server.name, file.digest, identity(file))
    with pytest.raises(AccessDenied, match="used before"):
        again.have(server.name, file.digest, identity(file))
    assert server.told.refused_for == ["replayed"]


def test_skewed_clock(server: Serving, file: RecordFile) -> None:
    late = PeerClient("asker:1", lambda: (KEY,), lambda: server.now - 31)
    with pytest.raises(AccessDenied, match="30 s are allowed"):
        late.have(server.name, file.digest, identity(file))
    assert server.told.refused_for == ["clock"]


def test_nothing_is_said_or_changed_without_a_signature(server: Serving, file: RecordFile) -> None:
    path = have_path(file.digest, identity(file))
    for method, address in (("GET", path), ("GET", "/"), ("DELETE", path), ("POST", "/v1/pull")):
        assert answer(server, method, address).startswith(b"HTTP/1.1 401 ")
    signed = sign(
        KEY, SignedRequest("DELETE", path), Stamp("a:1", server.name, int(server.now), "n")
    )
    assert answer(server, "DELETE", path, signed).startswith(b"HTTP/1.1 405 ")
    signed = sign(
        KEY, SignedRequest("GET", "/v1/pull"), Stamp("a:1", server.name, int(server.now), "m")
    )
    assert answer(server, "GET", "/v1/pull", signed).startswith(b"HTTP/1.1 404 ")


def answer(server: Serving, method: str, path: str, authorization: str = "") -> bytes:
    host, _, port = server.name.rpartition(":")
    with closing(socket.create_connection((host, int(port)))) as raw:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        raw.sendall(f"{head}Authorization: {authorization}\r\n\r\n".encode())
        data = b""
        while more := raw.recv(65536):
            data += more
    return data


# asyncio of Python 3.11 leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_private_files_are_given_over_mutual_tls_only(
    warm: Node, file: RecordFile, tmp_path: Path
) -> None:
    with serving(warm, public=set()) as server, pytest.raises(NotFound):
        server.client().have(server.name, file.digest, identity(file))
    authority = Authority(tmp_path / "ca")
    files = authority.issue("node-a")
    with serving(warm, public=set(), everything=True, tls=files) as server:
        client = server.client()
        assert client.have(server.name, file.digest, identity(file)).complete
        assert chunk_of(client, server.name, file, 1, ByteRange(0, 5000)) == DATA[CHUNK_SIZE:]
        for wrong in (
            Authority(tmp_path / "other").issue("node-b", trusts=authority),
            authority.issue("node-c", name="node-x"),
        ):
            with pytest.raises((RemoteRefused, Unreachable)):
                server.client(tls=wrong).have(server.name, file.digest, identity(file))
        with pytest.raises((RemoteRefused, Unreachable)):
            server.client(tls=None).have(server.name, file.digest, identity(file))
        named = authority.issue("node-d", name="node-a")
        assert server.client(tls=named).have(server.name, file.digest, identity(file)).complete
    gc.collect()


def test_tls_files_that_are_none_are_refused(tmp_path: Path) -> None:
    files = Authority(tmp_path / "ca").issue("node")
    files.key.write_text("nothing")
    with pytest.raises(InvalidInput, match="peers"):
        files.server_context()


def test_who_finds_all_places_taken_is_told_when_to_come_again(
    warm: Node, file: RecordFile
) -> None:
    with serving(warm, public={PLACE}, uploads=1) as server:
        client = server.client()
        wanted = ByteRange(0, CHUNK_SIZE)
        with client.chunk(server.name, file.digest, ChunkId(identity(file), 0), wanted):
            with pytest.raises(RateLimited) as caught:
                chunk_of(client, server.name, file, 1, ByteRange(0, 10))
            assert caught.value.retry_after == 0.25


def test_who_takes_nothing_loses_its_place_to_others(warm: Node, file: RecordFile) -> None:
    """Its kernel takes some megabytes for it; then nothing more leaves."""

    def slice_timeout(size: int) -> float:
        return 0.2 if size > 10 else 3600.0

    with serving(warm, public={PLACE}, uploads=1, slice_timeout=slice_timeout) as server:
        client, chunk = server.client(), ChunkId(identity(file), 0)
        with client.chunk(server.name, file.digest, chunk, ByteRange(0, CHUNK_SIZE)) as stream:
            wait_until(lambda: _given(server, file), what="place for another peer")
            with pytest.raises(Unreachable):
                _drain(stream)
        wait_until(lambda: server.told.sent == [10], what="count without what broke off")


def _drain(stream: BlobStream) -> None:
    while stream.readinto(memoryview(bytearray(1 << 20))):
        pass


def _given(server: Serving, file: RecordFile) -> bool:
    try:
        return len(chunk_of(server.client(), server.name, file, 1, ByteRange(0, 10))) == 10
    except RateLimited:
        return False


def test_peers_share_the_cap_on_what_is_sent(warm: Node, file: RecordFile) -> None:
    """A cap makes it take at least so long, whatever the machine."""
    with (
        serving(warm, public={PLACE}, upload=2 * CHUNK_SIZE) as server,
        ThreadPoolExecutor(2) as peers,
    ):
        began = time.monotonic()
        wanted = [
            peers.submit(chunk_of, server.client(), server.name, file, 0, ByteRange(0, CHUNK_SIZE))
            for _ in range(2)
        ]
        assert [each.result() == DATA[:CHUNK_SIZE] for each in wanted] == [True, True]
        assert time.monotonic() - began >= 1.0 - 0.25, "two chunks, but for what may come at once"


def test_a_file_that_moves_while_it_is_sent_is_sent_to_its_end(
    server: Serving, file: RecordFile, tmp_path: Path
) -> None:
    """A partial that lands in the store has another name then."""
    path = tmp_path / "partial"
    path.write_bytes(DATA[:CHUNK_SIZE])
    found = ServableRange(path, CHUNK_SIZE, Have(1, 1))
    server.api.offers.find = lambda sha256, name: found  # type: ignore[method-assign]
    chunk = ChunkId(identity(file), 0)
    with server.client().chunk(server.name, file.digest, chunk, ByteRange(0, CHUNK_SIZE)) as stream:
        buffer = memoryview(bytearray(1 << 20))
        got = bytearray(buffer[: stream.readinto(buffer)])
        path.rename(tmp_path / "landed")
        while count := stream.readinto(buffer):
            got += buffer[:count]
    assert bytes(got) == DATA[:CHUNK_SIZE]
    with pytest.raises(RateLimited):
        chunk_of(server.client(), server.name, file, 0, ByteRange(0, 1))
