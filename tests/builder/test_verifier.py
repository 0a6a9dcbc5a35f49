"""Verify says exactly what is wrong, and nothing is wrong with what is intact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from builder.verifier import (
    Verification,
    compare,
    image_contents,
    read_record,
    verify_directory,
    verify_image,
)
from modelimage import mediatypes
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidImage, NotFound
from modelimage.hasher import FileDigests
from modelimage.layout import Layout
from modelimage.path_rules import RECORD_NAME
from modelimage.publication import publication
from modelimage.record import Record, RecordFile, Role
from modelimage.resolve import resolve_model
from tests.builder.building import build_here
from tests.builder.checkpoints import sharded
from tests.modelimage.conformance import index_of


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    build_here(sharded(tmp_path / "source"), f"oci:{tmp_path}/out:v1", tmp_path)
    return Layout(tmp_path / "out")


@pytest.fixture
def record(layout: Layout) -> Record:
    return image_contents(layout, "v1").records[0]


@pytest.fixture
def unpacked(tmp_path: Path, record: Record) -> Path:
    """The model's directory as a node has it."""
    source = sharded(tmp_path / "unpacked")
    (source / RECORD_NAME).write_bytes(record.to_bytes())
    return source


def verified(layout: Layout) -> Verification:
    return verify_image(layout, image_contents(layout, "v1"), lambda _: None)


def test_an_intact_image_has_no_problems(layout: Layout) -> None:
    found = verified(layout)
    assert found.problems == ()
    assert found.checked == len(image_contents(layout, "v1").blobs)
    found.raise_problems()


def weight_layer(record: Record) -> Digest:
    return next(layer.digest for layer in record.layers if layer.role is Role.WEIGHT)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_named_by_blob_file_and_chunk(layout: Layout, record: Record) -> None:
    digest = weight_layer(record)
    flip(layout.blob_path(digest), 1000)
    where = {problem.where: problem.what for problem in verified(layout).problems}
    assert set(where) == {str(digest), record.layer_files(digest)[0].path}
    assert "wrong chunks of 32 MiB: 0" in where[record.layer_files(digest)[0].path]
    with pytest.raises(DigestMismatch, match=digest.hex):
        verified(layout).raise_problems()


def test_every_problem_is_listed(layout: Layout, record: Record) -> None:
    first, second, *_ = [layer.digest for layer in record.layers]
    layout.blob_path(first).unlink()
    with layout.blob_path(second).open("ab") as file:
        file.write(b"more")
    where = {problem.where for problem in verified(layout).problems}
    assert {str(first), str(second)} <= where


def test_a_record_that_lies_about_a_file_is_told(layout: Layout, record: Record) -> None:
    lie = Digest.of(b"another file")
    files = tuple(
        replace(file, digest=lie) if file.role is Role.WEIGHT else file for file in record.files
    )
    forged = publication([replace(record, files=files)], version="v1")
    for document in (*forged.blobs, *forged.manifests):
        layout.remove_blob(document.descriptor.digest)
        with layout.ingest() as ingest:
            ingest.write(document.data)
            ingest.commit(document.descriptor.digest)
    index = forged.manifest("v1")
    layout.put_manifest(index.descriptor, index.data, "v1")
    problems = verified(layout).problems
    assert {problem.where for problem in problems} == {
        file.path for file in record.files if file.role is Role.WEIGHT
    }


def test_an_image_without_record_has_its_blobs_checked(layout: Layout) -> None:
    blob = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
    digest = Digest.of(blob)
    with layout.ingest() as ingest:
        ingest.write(blob)
        ingest.commit(digest)
    manifest = (
        b'{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"%s","digest":"%s","size":%d},"layers":[]}'
        % (
            mediatypes.OCI_MANIFEST.encode(),
            mediatypes.OCI_CONFIG.encode(),
            str(digest).encode(),
            len(blob),
        )
    )
    descriptor = (
        publication([image_contents(layout, "v1").records[0]], version="x").manifests[0].descriptor
    )
    foreign = replace(descriptor, digest=Digest.of(manifest), size=len(manifest), annotations={})
    layout.put_manifest(foreign, manifest, "foreign")
    contents = image_contents(layout, "foreign")
    assert contents.records == ()
    assert verify_image(layout, contents, lambda _: None).problems == ()


def damage(path: Path) -> None:
    flip(path / "model-00001-of-00002.safetensors", 100)


def shorten(path: Path) -> None:
    with (path / "model-00001-of-00002.safetensors").open("r+b") as file:
        file.truncate(10)


def remove(path: Path) -> None:
    (path / "model-00001-of-00002.safetensors").unlink()


def add(path: Path) -> None:
    (path / "stranger.txt").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (damage, "model-00001-of-00002.safetensors", "has sha256"),
        (shorten, "model-00001-of-00002.safetensors", "has 10 bytes"),
        (remove, "model-00001-of-00002.safetensors", "is missing"),
        (add, "stranger.txt", "is not in the record"),
    ],
)
def test_a_directory_is_compared_with_its_record(
    unpacked: Path, change: Callable[[Path], None], where: str, what: str
) -> None:
    assert verify_directory(unpacked, read_record(unpacked), lambda _: None).problems == ()
    change(unpacked)
    (problem,) = verify_directory(unpacked, read_record(unpacked), lambda _: None).problems
    assert problem.where == where
    assert problem.what.startswith(what)


def test_progress_adds_up_whatever_is_wrong(unpacked: Path) -> None:
    remove(unpacked)
    (unpacked / "config.json").write_bytes(b"")
    counts: list[int] = []
    record = read_record(unpacked)
    verify_directory(unpacked, record, counts.append)
    assert sum(counts) == record.size


def test_a_directory_without_record(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_record(tmp_path)
    (tmp_path / RECORD_NAME).write_bytes(b"{}")
    with pytest.raises(InvalidImage):
        read_record(tmp_path)


def test_wrong_chunk_digests_over_right_bytes_are_the_records_fault() -> None:
    digest = Digest.of(b"x")
    file = RecordFile("a", 1, digest, Role.WEIGHT, digest, ("0" * 64,))
    assert compare(file, FileDigests(digest, ("0" * 64,))) == []
    (problem,) = compare(file, FileDigests(digest, ("1" * 64,)))
    assert "chunk digests are wrong" in problem.what


def nested(layout: Layout, depth: int) -> None:
    """Tag an index around the image's, as tools write that put an index into another."""
    root = layout.resolve("v1")
    for _ in range(depth):
        root, data = index_of(root)
        layout.put_manifest(root, data, "nested")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_index_within_an_index_is_verified_as_it_is_pulled(layout: Layout, depth: int) -> None:
    nested(layout, depth)
    whole, inner = image_contents(layout, "nested"), image_contents(layout, "v1")
    assert whole == inner
    assert verify_image(layout, whole, lambda _: None).problems == ()
    assert resolve_model(layout, "nested").record == inner.records[0]


def test_indexes_that_nest_too_deep_or_list_too_many_are_refused(layout: Layout) -> None:
    nested(layout, 5)
    with pytest.raises(InvalidImage, match="nest deeper"):
        image_contents(layout, "nested")
    many, data = index_of(*[layout.resolve("v1-modelpack")] * 200)
    layout.put_manifest(many, data)
    outer, data = index_of(many, many)
    layout.put_manifest(outer, data, "many")
    with pytest.raises(InvalidImage, match="more than 256"):
        image_contents(layout, "many")
