"""Reading layers: what registries may send instead, bombs, odd but valid streams, and what ranges cost."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidImage, RemoteRefused, Unreachable
from modelimage.foreign import (
    ForeignLayer,
    ForeignModel,
    Limits,
    Packing,
    describe_foreign,
    open_layer,
)
from modelimage.foreign.inflate import GzipInflater, Inflater, ZstdInflater
from modelimage.foreign.layer_files import list_layer
from modelimage.hasher import hash_layer
from modelimage.layout import Layout
from modelimage.ranges import ByteRange
from modelimage.recipe import LayerFile
from modelimage.repository import BlobStream
from tests.modelimage.foreign.images import Entry, Maker, compress, files_tar, pull, tar

PACKINGS = list(Packing)
COMPRESSED = [Packing.TAR_GZIP, Packing.TAR_ZSTD]


class FakeBlob:
    """A blob stream over bytes that gives at most `step` of them at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def readinto(self, buffer: memoryview, /) -> int:
        return self._data.readinto(buffer[: self._step])

    def close(self) -> None:
        self._data.close()


class Sends:
    """A registry that answers each request for a blob with bytes of its own choice."""

    def __init__(self, data: bytes, *, step: int = 1 << 20) -> None:
        self._data = data
        self._step = step
        self.requests: list[ByteRange | None] = []

    def resolve(self, name: str) -> Descriptor:
        raise AssertionError(name)

    def manifest(self, descriptor: Descriptor) -> bytes:
        raise AssertionError(descriptor)

    def tags(self) -> list[str]:
        return []

    @contextlib.contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        self.requests.append(wanted)
        start, stop = (wanted.start, wanted.stop) if wanted else (0, len(self._data))
        yield FakeBlob(self._data[start:stop], self._step)


class Counting(Layout):
    """A layout that notes which ranges of blobs are asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.requests: list[ByteRange] = []

    @contextlib.contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        if wanted is not None:
            self.requests.append(wanted)
        with super().blob(descriptor, wanted) as stream:
            yield stream


def layer_of(archive: bytes, packing: Packing, *, diff_id: Digest | None = None) -> ForeignLayer:
    blob = compress(archive, packing)
    return ForeignLayer(
        Descriptor("application/x", Digest.of(blob), len(blob)),
        packing,
        path="file" if packing is Packing.RAW else "",
        diff_id=diff_id,
    )


def read(reader: Sends, layer: ForeignLayer, limits: Limits | None = None) -> dict[int, bytes]:
    out: dict[int, bytearray] = {}
    with open_layer(reader, layer, limits=limits) as stream:
        for piece in stream:
            out.setdefault(piece.member, bytearray()).extend(piece.data)
    return {number: bytes(data) for number, data in out.items()}


ARCHIVE = files_tar({"a": bytes(range(256)) * 40, "b": b"", "c": b"c"})


@pytest.mark.parametrize("step", [1, 511, 513, 1 << 20])
@pytest.mark.parametrize("packing", [Packing.TAR, *COMPRESSED])
def test_the_size_of_reads_does_not_matter(packing: Packing, step: int) -> None:
    layer = layer_of(ARCHIVE, packing, diff_id=Digest.of(ARCHIVE))
    reader = Sends(compress(ARCHIVE, packing), step=step)
    assert read(reader, layer) == {0: bytes(range(256)) * 40, 1: b"", 2: b"c"}


@pytest.mark.parametrize("packing", PACKINGS)
def test_wrong_bytes_are_no_layer(packing: Packing) -> None:
    layer = layer_of(ARCHIVE, packing)
    other = compress(ARCHIVE.replace(b"c", b"d"), packing)
    with pytest.raises(DigestMismatch):
        read(Sends(other), layer)


@pytest.mark.parametrize("packing", PACKINGS)
def test_fewer_bytes_are_no_layer(packing: Packing) -> None:
    blob = compress(ARCHIVE, packing)
    for cut in (0, 1, len(blob) // 2, len(blob) - 1):
        with pytest.raises(DigestMismatch):
            read(Sends(blob[:cut]), layer_of(ARCHIVE, packing))


@pytest.mark.parametrize("packing", PACKINGS)
def test_more_bytes_are_no_layer(packing: Packing) -> None:
    blob = compress(ARCHIVE, packing)
    with pytest.raises(DigestMismatch, match="more bytes"):
        read(Sends(blob + bytes(70_000)), layer_of(ARCHIVE, packing))


@pytest.mark.parametrize("packing", COMPRESSED)
def test_a_diff_id_must_hold(packing: Packing) -> None:
    layer = layer_of(ARCHIVE, packing, diff_id=Digest.of(b"other"))
    with pytest.raises(DigestMismatch, match="decompresses to"):
        read(Sends(compress(ARCHIVE, packing)), layer)


@pytest.mark.parametrize("packing", PACKINGS)
def test_members_are_told_only_when_all_was_checked(packing: Packing) -> None:
    layer = layer_of(ARCHIVE, packing)
    reader = Sends(compress(ARCHIVE, packing))
    with open_layer(reader, layer) as stream:
        next(iter(stream))
        with pytest.raises(DigestMismatch, match="wasn't read"):
            _ = stream.members


@pytest.mark.parametrize("packing", COMPRESSED)
def test_what_is_not_compressed_at_all(packing: Packing) -> None:
    blob = random.Random(1).randbytes(5000)  # noqa: S311 (not for secrets)
    layer = ForeignLayer(Descriptor("application/x", Digest.of(blob), len(blob)), packing)
    with pytest.raises(InvalidImage, match="not valid"):
        read(Sends(blob), layer)


@pytest.mark.parametrize("packing", COMPRESSED)
def test_a_bomb_is_refused_long_before_it_has_gone_off(packing: Packing) -> None:
    archive = tar([Entry("zeros", bytes(100 << 20))])
    limits = Limits(slack=1 << 20, ratio=20)
    pieces: list[int] = []
    reader = Sends(compress(archive, packing), step=4096)
    with (
        open_layer(reader, layer_of(archive, packing), limits=limits) as stream,
        pytest.raises(InvalidImage, match="ratio is too high"),
    ):
        pieces.extend(len(piece.data) for piece in stream)
    assert sum(pieces) < 10 << 20


def test_a_total_that_is_too_much() -> None:
    layer = layer_of(ARCHIVE, Packing.TAR_GZIP)
    with pytest.raises(InvalidImage, match="ratio is too high"):
        read(Sends(compress(ARCHIVE, Packing.TAR_GZIP)), layer, Limits(total_bytes=5000))


# Compressed streams


def inflate(inflater: Inflater, step: int) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(step))
    while count := inflater.readinto(buffer):
        assert count <= step
        out += buffer[:count]
    assert inflater.readinto(buffer) == 0
    return bytes(out)


STEPS = st.integers(min_value=1, max_value=200)


@given(
    parts=st.lists(st.binary(max_size=300) | st.integers(0, 3000).map(bytes), max_size=5),
    step=STEPS,
    taken=STEPS,
    padding=st.integers(min_value=0, max_value=600),
)
def test_gzip_of_several_members(parts: list[bytes], step: int, taken: int, padding: int) -> None:
    blob = b"".join(gzip.compress(part, mtime=0) for part in parts) + bytes(padding)
    source = io.BytesIO(blob)
    found = inflate(GzipInflater(lambda size: source.read(min(size, taken))), step)
    assert found == b"".join(parts)


@given(
    parts=st.lists(st.binary(max_size=300) | st.integers(0, 3000).map(bytes), max_size=5),
    step=STEPS,
    taken=STEPS,
)
def test_zstd_of_several_frames(parts: list[bytes], step: int, taken: int) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"toc"
    blob = b"".join(skipped + zstandard.ZstdCompressor().compress(part) for part in parts)
    source = io.BytesIO(blob)
    found = inflate(ZstdInflater(lambda size: source.read(min(size, taken))), step)
    assert found == b"".join(parts)


@given(blob=st.binary(max_size=400), step=STEPS)
def test_noise_is_no_compressed_stream(blob: bytes, step: int) -> None:
    for inflater in (GzipInflater(io.BytesIO(blob).read), ZstdInflater(io.BytesIO(blob).read)):
        with contextlib.suppress(InvalidImage):
            inflate(inflater, step)


@pytest.mark.parametrize("tail", [b"junk", bytes(20) + b"junk", b"\x1f\x8b"])
def test_gzip_with_something_behind_it(tail: bytes) -> None:
    source = io.BytesIO(gzip.compress(b"data") + tail)
    with pytest.raises(InvalidImage):
        inflate(GzipInflater(source.read), 100)


def test_gzip_that_ends_in_the_middle() -> None:
    source = io.BytesIO(gzip.compress(b"data" * 100)[:-5])
    with pytest.raises(InvalidImage, match="in the middle"):
        inflate(GzipInflater(source.read), 100)


# Ranges


def counted(path: Path, *tars: bytes) -> tuple[Counting, ForeignModel]:
    Maker(path).image(*tars)
    reader = Counting(path)
    return reader, describe_foreign(reader, reader.resolve("latest"))


def test_a_layer_of_large_files_is_listed_by_a_few_small_reads(tmp_path: Path) -> None:
    reader, model = counted(tmp_path, files_tar({name: bytes(20 << 20) for name in "abc"}))
    assert model.is_listed
    assert len(reader.requests) <= 4
    assert sum(map(len, reader.requests)) <= 4 * (32 << 10)


def test_a_layer_of_small_files_is_listed_by_few_reads(tmp_path: Path) -> None:
    archive = files_tar({f"{number}": bytes(700) for number in range(3000)})
    reader, model = counted(tmp_path, archive)
    assert len(model.files) == 3000
    assert len(reader.requests) <= 12
    assert sum(map(len, reader.requests)) <= 1.1 * len(archive)


@pytest.mark.parametrize("trailer", [0, 512, 20_000])
def test_a_listed_layer_can_be_made_again_from_its_files(tmp_path: Path, trailer: int) -> None:
    files = {"a": b"1" * 700, "b": b"", "c": b"3" * 512, "d/e": b"4"}
    archive = files_tar(files).rstrip(b"\0")
    archive += b"\0" * (-len(archive) % 512) + b"\0" * trailer
    _, model = counted(tmp_path / "image", archive)
    (layer,) = model.layers
    members = layer.members or ()
    recipe = layer.recipe(lambda n: LayerFile(members[n].path, members[n].size, layer.digest))
    assert recipe is not None
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    found = hash_layer(recipe, lambda path: tmp_path / path)
    assert found.digest == layer.digest
    assert found.files["a"].digest == Digest.of(files["a"])


def test_a_compressed_layer_cannot_be_made_again() -> None:
    assert layer_of(ARCHIVE, Packing.TAR_GZIP).recipe(_no_file) is None


def test_a_tar_that_lies_about_a_size_is_refused_before_any_download(tmp_path: Path) -> None:
    archive = bytearray(files_tar({"a": b"1"}))
    huge = tar([Entry("a", b"1")]).replace(b"00000000001\0", b"77777777777\0", 1)[:512]
    blank = huge[:148] + b" " * 8 + huge[156:]
    archive[:512] = huge[:148] + b"%06o\0 " % sum(blank) + huge[156:]
    with pytest.raises(InvalidImage, match="in the middle"):
        counted(tmp_path, bytes(archive))


def test_a_range_that_comes_short() -> None:
    layer = layer_of(ARCHIVE, Packing.TAR)
    with pytest.raises(RemoteRefused, match="incomplete"):
        list_layer(Sends(ARCHIVE[:300]), layer, Limits())


def test_a_stream_ends_when_it_is_closed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    Maker(tmp_path).image(files_tar({"a": bytes(5 << 20)}))
    model = describe_foreign(layout, layout.resolve("latest"))
    with open_layer(layout, model.layers[0]) as stream:
        pieces = iter(stream)
        next(pieces)
        stream.close()
        with pytest.raises(Unreachable, match="closed"):
            list(pieces)


def test_a_tar_of_very_many_headers_is_not_kept_in_memory(tmp_path: Path) -> None:
    files = {f"{number}": b"1" for number in range(20)}
    Maker(tmp_path).image(files_tar(files))
    reader = Layout(tmp_path)
    model = describe_foreign(reader, reader.resolve("latest"), limits=Limits(literal_bytes=4096))
    assert model.layers[0].recipe(_no_file) is None
    assert pull(reader, model)[1] == files


def test_pulling_a_model_of_mixed_layers(tmp_path: Path) -> None:
    """Hidden by a whiteout, replaced, linked across layers: what is pulled is what the view says."""
    maker = Maker(tmp_path)
    maker.image(
        files_tar({"a": b"old", "b": b"hidden"}),
        tar([Entry("a", b"new"), Entry(".wh.b"), Entry("c", b"c")]),
        packing=Packing.TAR_ZSTD,
    )
    model = describe_foreign(maker.layout, maker.layout.resolve("latest"))
    assert not model.is_listed
    assert model.files == ()
    _, files = pull(maker.layout, model)
    assert files == {"a": b"new", "c": b"c"}


def _no_file(number: int) -> LayerFile:
    raise AssertionError(number)


@given(
    sizes=st.lists(st.sampled_from([0, 1, 20, 5000, 200_000]), max_size=8),
    step=st.integers(1, 300_000),
)
def test_gzip_members_of_any_size_give_their_bytes(sizes: list[int], step: int) -> None:
    plain = [random.Random(size).randbytes(size) for size in sizes]  # noqa: S311 - no secrets
    source = io.BytesIO(b"".join(map(gzip.compress, plain)))
    assert inflate(GzipInflater(source.read), step) == b"".join(plain)


def test_many_small_gzip_members_cost_what_their_bytes_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """zlib copies what it doesn't take: of empty members all that was given, thirteen thousand times."""
    given_bytes = 0
    begin = zlib.decompressobj

    class Counted:
        def __init__(self, window: int) -> None:
            self._member = begin(window)

        def decompress(self, data: memoryview, most: int) -> bytes:
            nonlocal given_bytes
            given_bytes += len(data)
            return self._member.decompress(data, most)

        def __getattr__(self, name: str) -> object:
            return getattr(self._member, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    blob = gzip.compress(b"") * 10_000
    assert inflate(GzipInflater(io.BytesIO(blob).read), 1000) == b""
    assert given_bytes < 40 * len(blob)
