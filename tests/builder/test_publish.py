"""What is sent: blobs made again from files at any offset, only what is missing, tags after everything else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.destination import Destination, check_writable, preflight
from builder.layer_plan import PlannedFile, PlannedLayer, plan_layers
from builder.publish import LayerSource, Sent, blob_bytes, send, set_tags
from builder.reporter import Silent
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import (
    DigestMismatch,
    InvalidCheckpoint,
    InvalidInput,
    NotWritable,
    RemoteRefused,
)
from modelimage.hasher import hash_layer
from modelimage.publication import Publication, publication
from modelimage.record import ModelFacts, Record, RecordFile, RecordLayer, Role
from modelimage.reference import LayoutReference, RegistryReference
from modelimage.repository import BlobContent

FILES = {"a.safetensors": b"a" * 1500, "b/empty.txt": b"", "b/c.json": b"{}" * 600}


def layer_source(directory: Path) -> tuple[PlannedLayer, LayerSource]:
    """One layer of the files above."""
    for path, data in FILES.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    planned = [PlannedFile(path, len(data), Role.WEIGHT) for path, data in sorted(FILES.items())]
    layer = PlannedLayer(Role.WEIGHT, tuple(planned))
    return layer, LayerSource(layer.recipe, {path: directory / path for path in FILES})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LayerSource:
    return layer_source(tmp_path_factory.mktemp("source"))[1]


def joined(source: LayerSource, offset: int) -> bytes:
    return b"".join(bytes(piece) for piece in blob_bytes(source, offset))


@given(offset=st.integers(0, 10_000))
def test_a_blob_can_be_made_from_any_offset(source: LayerSource, offset: int) -> None:
    whole = joined(source, 0)
    assert len(whole) == source.recipe.size
    assert joined(source, offset) == whole[offset:]


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    _, source = layer_source(tmp_path)
    os.truncate(tmp_path / "a.safetensors", 10)
    with pytest.raises(InvalidCheckpoint, match="shorter"):
        joined(source, 0)


class Shelf:
    """An ImageWriter in memory that notes the order of what it was given, and checks as a registry does."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.log: list[str] = []

    def has_blob(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.blobs

    def put_blob(self, content: BlobContent, progress: Callable[[int], None] | None = None) -> None:
        data = b"".join(bytes(piece) for piece in content.read(0))
        if Digest.of(data) != content.descriptor.digest:
            raise DigestMismatch("other bytes")
        self.blobs[content.descriptor.digest] = data
        self.log.append("blob")

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        self.log.append(f"tag {tag}" if tag else "manifest")


def planned_publication(directory: Path) -> tuple[Publication, dict[Digest, LayerSource]]:
    layer, source = layer_source(directory)
    digests = hash_layer(layer.recipe, source.locations.__getitem__)
    files = tuple(
        RecordFile(
            file.path,
            file.size,
            digests.files[file.path].digest if file.size else Digest.of(b""),
            file.role,
            digests.digest,
            digests.files[file.path].chunks if file.size else (),
        )
        for file in layer.files
    )
    layers = (RecordLayer(digests.digest, layer.size, layer.role),)
    record = Record("bf16", "local", "", "", ModelFacts(), files, layers)
    return publication([record], version="v1"), {digests.digest: source}


def test_tags_come_last_and_the_versions_own_at_the_very_end(tmp_path: Path) -> None:
    planned, sources = planned_publication(tmp_path)
    shelf = Shelf()
    sent = send(planned, sources, shelf, Silent())
    assert sent == Sent(planned.layers[0].size, 0)
    assert not [entry for entry in shelf.log if entry.startswith("tag")]
    set_tags(planned, shelf)
    assert shelf.log[-2:] == ["tag v1-modelpack", "tag v1"]
    first_manifest = shelf.log.index("manifest")
    assert "blob" not in shelf.log[first_manifest:]


def test_what_is_there_is_not_sent_again(tmp_path: Path) -> None:
    planned, sources = planned_publication(tmp_path)
    shelf = Shelf()
    send(planned, sources, shelf, Silent())
    shelf.log.clear()
    assert send(planned, sources, shelf, Silent()) == Sent(0, planned.layers[0].size)
    assert "blob" not in shelf.log


def test_a_file_that_changed_since_it_was_hashed_is_not_published(tmp_path: Path) -> None:
    planned, sources = planned_publication(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"b" * 1500)
    shelf = Shelf()
    with pytest.raises(DigestMismatch):
        send(planned, sources, shelf, Silent())
    assert not [entry for entry in shelf.log if entry != "blob"]


class Untouched:
    """A writer that must not be asked anything."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


def test_a_registrys_limits_are_known_before_anything_is_sent() -> None:
    layers = plan_layers([PlannedFile("a.safetensors", 11 << 30, Role.WEIGHT)])
    ghcr = RegistryReference("ghcr.io", "team/model", "v1")
    with pytest.raises(RemoteRefused, match="layers of at most"):
        preflight(Destination(ghcr, Untouched()), ["bf16"], layers)  # type: ignore[arg-type]
    shelf = Shelf()
    other = RegistryReference("registry.example", "team/model", "v1")
    assert preflight(Destination(other, shelf), ["bf16"], layers) == []
    assert shelf.log == ["blob"]


def test_a_directory_is_looked_at_and_left_as_it_is(tmp_path: Path) -> None:
    reference = LayoutReference(tmp_path / "new" / "layout", "v1")
    assert preflight(Destination(reference, Untouched()), ["bf16"], []) == []  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").write_bytes(b"")
    with pytest.raises(NotWritable, match="not a directory"):
        preflight(Destination(reference, Untouched()), ["bf16"], [])  # type: ignore[arg-type]
    with pytest.raises(NotWritable, match="isn't writable"):
        check_writable(Path("/proc/sys/kernel/layout"))


def test_a_tag_that_a_variant_makes_too_long_is_refused() -> None:
    long = RegistryReference("registry.example", "m", "x" * 120)
    shelf = Shelf()
    preflight(Destination(long.with_tag("x" * 110), shelf), ["bf16"], [])
    with pytest.raises(InvalidInput):
        preflight(Destination(long, Untouched()), ["bf16", "int8"], [])  # type: ignore[arg-type]
