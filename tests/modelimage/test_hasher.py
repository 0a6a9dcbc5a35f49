"""One read gives every digest, whatever the sizes; memory stays in the ring; a file that changes is told."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from modelimage.digest import Digest
from modelimage.errors import InvalidCheckpoint, NotFound
from modelimage.hash_pipeline import BUFFER_SIZE, RING_BUFFERS
from modelimage.hasher import EMPTY_FILE, FileDigests, hash_file, hash_layer, hash_stream
from modelimage.recipe import FileSlice, LayerFile, Recipe, layer_recipe
from modelimage.record import CHUNK_SIZE

SIZES = (0, 1, 511, 512, 513, BUFFER_SIZE - 1, BUFFER_SIZE, BUFFER_SIZE + 1, 3 * BUFFER_SIZE + 7)


def content(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_256(seed.to_bytes(4, "big")).digest(4099) * (size // 4099) + bytes(
        size % 4099
    )


def expected(data: bytes) -> FileDigests:
    chunks = (data[start : start + CHUNK_SIZE] for start in range(0, len(data), CHUNK_SIZE))
    return FileDigests(Digest.of(data), tuple(blake3(chunk).hexdigest() for chunk in chunks))


def recipe_of(files: dict[str, bytes]) -> Recipe:
    return layer_recipe(
        LayerFile(path, len(data), EMPTY_FILE.digest) for path, data in files.items()
    )


def blob_of(recipe: Recipe, files: dict[str, bytes]) -> bytes:
    return b"".join(
        files[segment.file.path] if isinstance(segment, FileSlice) else segment.data
        for segment in recipe.segments
    )


def store(directory: Path, files: dict[str, bytes]) -> Callable[[str], Path]:
    for path, data in files.items():
        (directory / path).write_bytes(data)
    return lambda path: directory / path


def reader(data: bytes, most: int) -> Callable[[memoryview], int]:
    """Reads like a socket: at most `most` bytes a call."""
    position = 0

    def read(view: memoryview) -> int:
        nonlocal position
        count = min(most, len(view), len(data) - position)
        view[:count] = data[position : position + count]
        position += count
        return count

    return read


@pytest.mark.parametrize("size", SIZES)
def test_a_file_has_the_digests_of_its_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(size))
    assert hash_file(path) == expected(content(size))


def test_chunks_end_where_the_format_says(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = content(2 * CHUNK_SIZE + 5)
    path.write_bytes(data)
    digests = hash_file(path)
    assert len(digests.chunks) == 3
    assert digests == expected(data)


def test_a_layer_and_its_files_come_from_one_read(tmp_path: Path) -> None:
    files = {f"file-{size}": content(size, size) for size in SIZES}
    recipe = recipe_of(files)
    written, counted = bytearray(), 0

    def count(size: int) -> None:
        nonlocal counted
        counted += size

    found = hash_layer(recipe, store(tmp_path, files), sink=written.extend, progress=count)
    assert bytes(written) == blob_of(recipe, files)
    assert found.digest == Digest.of(written)
    assert found.files == {path: expected(data) for path, data in files.items() if data}
    assert counted == sum(map(len, files.values()))


@given(
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=8),
    most=st.integers(1, 40),
)
def test_a_stream_that_follows_its_recipe_has_the_digests_of_its_bytes(
    sizes: list[int], most: int
) -> None:
    files = {f"file-{n}": content(size, n) for n, size in enumerate(sizes)}
    recipe = recipe_of(files)
    blob = blob_of(recipe, files)
    found = hash_stream(recipe, reader(blob, most))
    assert found.follows_recipe
    assert found.digest == Digest.of(blob)
    assert found.files == {path: expected(data) for path, data in files.items() if data}


@given(
    place=st.integers(0, 10_000),
    cut=st.sampled_from(["flip", "shorten", "lengthen"]),
)
def test_a_stream_that_does_not_follow_its_recipe_is_noticed(place: int, cut: str) -> None:
    files = {"a": content(700, 1), "b/c": content(20, 2)}
    recipe = recipe_of(files)
    blob = bytearray(blob_of(recipe, files))
    place %= len(blob)
    if cut == "flip":
        blob[place] ^= 1
    elif cut == "shorten":
        del blob[place:]
    else:
        blob += b"x" * (place + 1)
    found = hash_stream(recipe, reader(bytes(blob), 333))
    assert found.digest == Digest.of(blob)
    right = {path: expected(data) for path, data in files.items()}
    assert not found.follows_recipe or found.files != right


def test_a_short_stream_of_many_files_ends(tmp_path: Path) -> None:
    files = {f"file-{n}": content(BUFFER_SIZE, n) for n in range(2 * RING_BUFFERS)}
    recipe = recipe_of(files)
    found = hash_stream(recipe, reader(blob_of(recipe, files)[: BUFFER_SIZE // 2], 1 << 20))
    assert not found.follows_recipe
    assert list(found.files) == ["file-0"]


class ChangingFile:
    """Grows, shrinks or is rewritten once the first of its bytes has been read."""

    def __init__(self, path: Path, change: Callable[[Path], object]) -> None:
        self._path = path
        self._change = change
        self._done = False

    def __call__(self, count: int) -> None:
        if not self._done:
            self._done = True
            self._change(self._path)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shorten(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(BUFFER_SIZE + 1)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [append, shorten, rewrite])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(4 * BUFFER_SIZE))
    with pytest.raises(InvalidCheckpoint, match="changed while it was read"):
        hash_file(path, progress=ChangingFile(path, change))


def test_memory_is_the_ring_and_not_the_file(tmp_path: Path) -> None:
    files = {"file": content(20 * BUFFER_SIZE)}
    held: set[int] = set()

    def sink(view: memoryview) -> None:
        if len(view) == BUFFER_SIZE:
            held.add(id(view.obj))

    hash_layer(recipe_of(files), store(tmp_path, files), sink=sink)
    assert 0 < len(held) <= RING_BUFFERS


class FullDisk(OSError):
    """What a sink raises when its disk is full."""


def test_a_failing_sink_ends_the_read_and_leaves_no_thread(tmp_path: Path) -> None:
    files = {"file": content(20 * BUFFER_SIZE)}
    before = set(threading.enumerate())

    def sink(view: memoryview) -> None:
        raise FullDisk

    with pytest.raises(FullDisk):
        hash_layer(recipe_of(files), store(tmp_path, files), sink=sink)
    assert set(threading.enumerate()) <= before


def test_progress_may_stop_the_read(tmp_path: Path) -> None:
    files = {"file": content(20 * BUFFER_SIZE)}
    before = set(threading.enumerate())

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hash_layer(recipe_of(files), store(tmp_path, files), progress=stop)
    assert set(threading.enumerate()) <= before


def test_what_is_no_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        hash_file(tmp_path / "nothing")
    with pytest.raises(InvalidCheckpoint, match="not a regular file"):
        hash_file(tmp_path)
