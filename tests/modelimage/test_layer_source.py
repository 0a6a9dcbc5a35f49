"""Layers that pass: digested once and rightly, whatever a sender asks for again; sent to registries of every kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.access import Access
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, RemoteRefused
from modelimage.hasher import hash_layer
from modelimage.layer_source import StreamingLayer
from modelimage.recipe import FileSlice, LayerFile, Recipe, layer_recipe
from modelimage.registry.client import RegistryRepository
from modelimage.registry.profiles import RegistryProfile
from modelimage.registry.upload_state import UploadStates
from modelimage.repository import StreamedContent
from tests.modelimage.conformance import described, read_all
from tests.modelimage.test_registry_faults import (
    CHUNK,
    IN_ONE,
    SMALL_CHUNKS,
    Opener,
    repository_at,
    through,
)
from tests.modelimage.test_registry_resumes import KilledProcess
from tests.servers.faulty_registry import BrokenUpload, BufferedUploads, LostUpload, NoChunks

__all__ = ["through"]

FILES = {"a.safetensors": bytes(range(256)) * 2000, "b/c.bin": b"c" * 70_001, "empty": b""}
UNREAD = Digest.of(b"")


def recipe() -> Recipe:
    return layer_recipe(LayerFile(path, len(data), UNREAD) for path, data in FILES.items())


def slices(piece: FileSlice) -> Iterator[bytes]:
    data = FILES[piece.file.path][piece.start :]
    for start in range(0, len(data), 9_999):
        yield data[start : start + 9_999]


def blob() -> bytes:
    return b"".join(StreamingLayer(recipe(), slices).read(0))


BLOB = blob()


def test_it_is_what_a_layer_from_files_is(tmp_path: Path) -> None:
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    layer = StreamingLayer(recipe(), slices)
    assert hashlib.sha256(b"".join(layer.read(0))).hexdigest() == layer.digests().digest.hex
    assert layer.digests() == hash_layer(recipe(), tmp_path.joinpath)


@given(
    st.lists(
        st.tuples(st.integers(0, len(BLOB)), st.integers(0, 60)),
        max_size=6,
    )
)
def test_any_readings_before_the_last_change_nothing(tries: list[tuple[int, int]]) -> None:
    """From any offset, given up after any number of pieces: the bytes are right, and so are the digests."""
    layer = StreamingLayer(recipe(), slices)
    for offset, pieces in tries:
        seen = bytearray()
        for _, piece in zip(range(pieces), layer.read(offset), strict=False):
            seen += piece
        assert BLOB[offset : offset + len(seen)] == seen
    assert b"".join(layer.read(len(BLOB))) == b""
    b"".join(layer.read(0))
    assert layer.digests().digest == Digest.of(BLOB)


def test_the_next_chunk_goes_on_with_the_same_reading() -> None:
    opened: list[int] = []

    def counted(piece: FileSlice) -> Iterator[bytes]:
        opened.append(piece.start)
        return slices(piece)

    layer, seen = StreamingLayer(recipe(), counted), bytearray()
    while len(seen) < len(BLOB):
        chunk = bytearray()
        for piece in layer.read(len(seen)):
            chunk += piece
            if len(chunk) >= 50_000:
                break
        seen += chunk[:50_000]
    assert (bytes(seen), opened) == (BLOB, [0, 0])


def test_digests_are_not_told_early_and_short_files_are_noticed() -> None:
    layer = StreamingLayer(recipe(), slices)
    next(layer.read(0))
    with pytest.raises(DigestMismatch, match="were streamed"):
        layer.digests()
    short = StreamingLayer(recipe(), lambda piece: iter([b"short"]))
    with pytest.raises(DigestMismatch, match="bytes shorter"):
        list(short.read(0))


# To a registry


def content(layer: StreamingLayer) -> StreamedContent:
    return StreamedContent("these-bytes", len(BLOB), layer.read, lambda: layer.digests().digest)


def send(repository: RegistryRepository) -> list[int]:
    counts: list[int] = []
    repository.put_streamed(content(StreamingLayer(recipe(), slices)), counts.append)
    assert read_all(repository, described(BLOB)) == BLOB
    return counts


@pytest.mark.servers
@pytest.mark.parametrize("profile", [SMALL_CHUNKS, IN_ONE])
def test_a_blob_arrives_though_its_digest_came_last(
    through: Opener, profile: RegistryProfile
) -> None:
    proxy, repository = through(profile=profile)
    assert sum(send(repository)) == len(BLOB)
    assert proxy.uploaded == len(BLOB)
    if profile is IN_ONE:
        (patch,) = [request for request in proxy.seen if request.method == "PATCH"]
        assert "Content-Range" not in patch.headers


@pytest.mark.servers
@pytest.mark.parametrize("status", [400, 404, 416, 501])
def test_a_registry_without_chunks_takes_it_as_dockers_push_sends_it(
    through: Opener, status: int
) -> None:
    proxy, repository = through(NoChunks(status, unranged=True))
    assert sum(send(repository)) == len(BLOB)
    assert proxy.uploaded == CHUNK + len(BLOB)


@pytest.mark.servers
def test_a_registry_that_takes_neither_is_said_so(through: Opener) -> None:
    _, repository = through(NoChunks(501))
    with pytest.raises(RemoteRefused):
        send(repository)


@pytest.mark.servers
@pytest.mark.parametrize("profile", [SMALL_CHUNKS, IN_ONE])
def test_lost_and_broken_sessions_are_begun_again(
    through: Opener, profile: RegistryProfile
) -> None:
    _, repository = through(LostUpload(times=1), BrokenUpload(after=50_000), profile=profile)
    assert sum(send(repository)) == len(BLOB)


@pytest.mark.servers
def test_another_process_reads_all_and_sends_the_rest(through: Opener, tmp_path: Path) -> None:
    memory = UploadStates(tmp_path / "uploads")
    proxy, first = through(BufferedUploads(), memory=memory)
    dying = StreamingLayer(recipe(), slices)

    def read(offset: int) -> Iterator[memoryview]:
        for piece in dying.read(offset):
            if proxy.uploaded > 2 * CHUNK:
                raise KilledProcess
            yield piece

    with pytest.raises(KilledProcess):
        first.put_streamed(replace(content(dying), read=read))
    held, proxy.seen[:] = proxy.uploaded, []
    second = repository_at(proxy.host, first.repository, Access(), SMALL_CHUNKS, memory)
    send(second)
    assert held >= 2 * CHUNK
    assert proxy.uploaded - held == len(BLOB) - held // CHUNK * CHUNK


@pytest.mark.servers
def test_what_its_digest_refuses_is_not_visible(through: Opener) -> None:
    _, repository = through()
    layer = StreamingLayer(recipe(), slices)

    def refuse() -> Digest:
        raise DigestMismatch("the source says another digest")

    with pytest.raises(DigestMismatch, match="another digest"):
        repository.put_streamed(replace(content(layer), digest=refuse))
    assert not repository.has_blob(described(BLOB))
