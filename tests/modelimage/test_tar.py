"""Tar headers and layer recipes, read by two independent readers: Python's tarfile and GNU tar."""

from __future__ import annotations

import hashlib
import io
import itertools
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelimage import tar
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.path_rules import parents
from modelimage.ranges import ByteRange
from modelimage.recipe import (
    FileSlice,
    LayerFile,
    Literal,
    Recipe,
    Segment,
    layer_recipe,
    models_link_layer,
    single_file_layer,
)
from modelimage.tar import EntryKind, TarEntry
from tests.examples import examples
from tests.modelimage.strategies import layer_files, path_lists, paths, sizes

LONG = "/".join(["directory-with-a-long-name"] * 8)
SMALL = {
    "config.json": b"{}",
    "empty": b"",
    "weights/a.safetensors": bytes(range(256)) * 5,
    f"{LONG}/deep.bin": b"deep" * 200,
    "weights/\u00e4\u00f6\u4e2d": b"unicode",
    "x" * 150: b"long name without a slash",
}


def build(recipe: Recipe, contents: dict[str, bytes], wanted: ByteRange | None = None) -> bytes:
    """The blob, or a range of it, as whoever serves it would make it."""

    def bytes_of(segment: Segment) -> bytes:
        if isinstance(segment, Literal):
            return segment.data
        return contents[segment.file.path][segment.start : segment.stop]

    cut = recipe.cut(wanted or ByteRange(0, recipe.size))
    return b"".join(map(bytes_of, cut))


def files_of(contents: dict[str, bytes]) -> list[LayerFile]:
    return [LayerFile(path, len(data), Digest.of(data)) for path, data in contents.items()]


@given(paths, sizes)
def test_tarfile_reads_a_header_as_it_was_meant(path: str, size: int) -> None:
    block = tar.header(TarEntry(path, EntryKind.FILE, size))
    assert len(block) % tar.BLOCK == 0
    with tarfile.open(fileobj=io.BytesIO(block + tar.TRAILER), mode="r:") as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size, member.isreg()) == (path, size, True)
    assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)
    assert (member.uname, member.gname, member.pax_headers) == ("", "", {})


@given(paths)
def test_tarfile_reads_directories_and_links(path: str) -> None:
    directory = tar.header(TarEntry(path, EntryKind.DIRECTORY))
    link = tar.header(TarEntry(f"{path}-link", EntryKind.SYMLINK, target="."))
    with tarfile.open(fileobj=io.BytesIO(directory + link + tar.TRAILER), mode="r:") as archive:
        first, second = archive.getmembers()
    assert (first.name, first.isdir(), first.mode) == (path, True, 0o755)
    assert (second.name, second.issym(), second.linkname) == (f"{path}-link", True, ".")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "a\0b"])
def test_a_path_that_tar_cannot_hold_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput):
        tar.header(TarEntry(path))


def test_gnu_tar_unpacks_a_layer_to_the_same_files(tmp_path: Path) -> None:
    blob = build(layer_recipe(files_of(SMALL)), SMALL)
    done = subprocess.run(
        ["tar", "-x", "-v", "-C", tmp_path, "-f", "-"], input=blob, capture_output=True, check=True
    )
    assert done.stderr == b""
    unpacked = {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert unpacked == SMALL


def test_tarfile_reads_a_layer_whole_and_in_order() -> None:
    blob = build(layer_recipe(files_of(SMALL)), SMALL)
    with tarfile.open(fileobj=io.BytesIO(blob), mode="r:") as archive:
        names = [member.name for member in archive]
        files = {
            member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
            if member.isreg()
        }
    assert files == SMALL
    made: set[str] = set()
    for name in names:
        assert set(parents(name)) <= made, "a parent comes before what is in it"
        made.add(name)
    assert len(names) == len(made)


def test_files_above_eight_gib_are_read_by_both(tmp_path: Path) -> None:
    size = (8 << 30) + 5
    recipe = layer_recipe([LayerFile("big.safetensors", size, Digest.of(b""))])
    path = tmp_path / "layer.tar"
    with path.open("wb") as out:
        for segment in recipe.segments:
            if isinstance(segment, Literal):
                out.write(segment.data)
            else:
                out.seek(len(segment), io.SEEK_CUR)
    assert path.stat().st_size == recipe.size
    listed = subprocess.run(["tar", "-tvf", path], capture_output=True, check=True, text=True)
    assert str(size) in listed.stdout
    with tarfile.open(path) as archive:
        assert [(m.name, m.size) for m in archive] == [("big.safetensors", size)]


@given(layer_files)
def test_a_recipe_does_not_depend_on_the_order_of_files(files: Sequence[LayerFile]) -> None:
    assert layer_recipe(files) == layer_recipe(list(reversed(files)))


@given(layer_files)
def test_a_recipe_knows_where_each_file_lies(files: Sequence[LayerFile]) -> None:
    recipe = layer_recipe(files)
    places = recipe.files()
    assert places.keys() == {file.path for file in files if file.size}
    for file in files:
        if file.size:
            place = places[file.path]
            assert place.start % tar.BLOCK == 0
            assert list(recipe.cut(place)) == [FileSlice(file, 0, file.size)]
    assert recipe.size % tar.BLOCK == 0


@given(path_lists, st.data())
@settings(max_examples=examples(50))
def test_any_partition_of_a_blob_makes_the_blob(found: list[str], data: st.DataObject) -> None:
    """Law: the concatenation of `cut(r)` over any partition of the blob into ranges is the blob."""
    contents = {path: data.draw(st.binary(max_size=1500), label=path) for path in found}
    recipe = layer_recipe(files_of(contents))
    blob = build(recipe, contents)
    assert len(blob) == recipe.size
    inner = data.draw(st.sets(st.integers(1, recipe.size - 1), max_size=8), label="cuts")
    edges = [0, *sorted(inner), recipe.size]
    pieces = [ByteRange(a, b) for a, b in itertools.pairwise(edges)]
    assert b"".join(build(recipe, contents, piece) for piece in pieces) == blob


def test_a_range_beyond_the_blob_is_refused() -> None:
    recipe = layer_recipe([])
    with pytest.raises(InvalidInput):
        list(recipe.cut(ByteRange(0, recipe.size + 1)))


def test_layers_keep_their_digests() -> None:
    """The bytes of a layer are part of the format: another digest here breaks every published image."""
    blob = build(layer_recipe(files_of(SMALL)), SMALL)
    assert hashlib.sha256(blob).hexdigest() == (
        "5e9f35b7cc770a976a159b5442a575ebfc8fbede05ce1c91d42af1cb11677d85"
    )
    assert hashlib.sha256(models_link_layer()).hexdigest() == (
        "0b0de56dd456d027e345d1fc42ea3f8bd247e203f79851d09e65c2458be4b4d4"
    )


def test_a_single_file_layer_is_the_layer_of_that_file() -> None:
    contents = {"a.json": b"{}"}
    assert single_file_layer("a.json", b"{}") == build(layer_recipe(files_of(contents)), contents)
