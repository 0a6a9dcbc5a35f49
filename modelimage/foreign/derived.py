"""The record that a node derives from a foreign image after verifying every byte, because the image has none.

It has all that stores and peers need from a weightyard record, including chunk digests, so they handle both alike.
Its key is the manifest's digest, so its bytes may differ between nodes. If a layer is not compressed and all its files
are kept, the record also describes how to rebuild the blob from them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from modelimage import canonical
from modelimage.bounds import MALFORMED
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidImage, WeightyardError
from modelimage.foreign.contents import LayerContents
from modelimage.foreign.model import ForeignFile, ForeignLayer, ForeignModel, ImageFormat
from modelimage.foreign.original import Original, compare_with_record
from modelimage.hasher import FileDigests
from modelimage.path_rules import check_path
from modelimage.recipe import FileSlice, LayerFile, Literal, Recipe, Segment
from modelimage.record import CHUNK_SIZE, Record, RecordFile, check_files, files_by_layer

DERIVED_SCHEMA: Final = "weightyard.dev/derived/v1"
AS_PUBLISHED: Final = "as-published"
# Literals and members are stored in the record, so their number is bounded.
_MAX_LITERALS: Final = 1 << 20
_MAX_MEMBERS: Final = 20_000


@dataclass(frozen=True, slots=True)
class DerivedLayer:
    """A layer blob. `parts` rebuild it: literal bytes, and paths of whole files; None if that isn't possible.

    `contents`: the layer's members, so that an image sharing it need not read it again; None if there are too many.
    """

    descriptor: Descriptor
    parts: tuple[bytes | str, ...] | None = None
    contents: LayerContents | None = None

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    @property
    def size(self) -> int:
        return self.descriptor.size


@dataclass(frozen=True)
class DerivedRecord:
    """The verified files of a foreign image, sorted by path. Law: `DerivedRecord.parse(r.to_bytes()) == r`.

    `original`: the weightyard image that it was made from, if it still carries that image's record.
    """

    manifest: Digest
    kind: ImageFormat
    files: tuple[RecordFile, ...]
    layers: tuple[DerivedLayer, ...]
    original: Original | None = None

    @property
    def key(self) -> Digest:
        """The model key."""
        return self.manifest

    @property
    def variant(self) -> str:
        """The original's variant if no file differs from it; else the fixed one of foreign images, which state none."""
        if self.original is None or self.original.differs:
            return AS_PUBLISHED
        return self.original.variant

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    # Computed once: both are asked for layer by layer, of images with 100,000 files.
    @cached_property
    def by_layer(self) -> Mapping[Digest, list[RecordFile]]:
        """The files of each layer that has some, in the record's order."""
        return files_by_layer(self.files)

    @cached_property
    def _by_path(self) -> Mapping[str, RecordFile]:
        return {file.path: file for file in self.files}

    @cached_property
    def _layers(self) -> Mapping[Digest, DerivedLayer]:
        # Reversed, so that of layers with one digest the first is found.
        return {layer.digest: layer for layer in reversed(self.layers)}

    def layer(self, digest: Digest) -> DerivedLayer | None:
        """One of the layers, by its digest."""
        return self._layers.get(digest)

    def layer_files(self, layer: Digest) -> list[RecordFile]:
        return self.by_layer.get(layer, [])

    def recipe(self, layer: Digest) -> Recipe | None:
        """The recipe of one layer's blob; None if it can't be rebuilt and must come from the registry."""
        found = self.layer(layer)
        # A compressed layer, for example: compressors differ in the bytes that they write.
        if found is None or found.parts is None:
            return None
        return Recipe.from_segments(_segment(part, self._by_path) for part in found.parts)

    def to_bytes(self) -> bytes:
        """The canonical bytes, stored beside the model."""
        document: dict[str, Any] = {
            "schema": DERIVED_SCHEMA,
            "manifest": str(self.manifest),
            "kind": self.kind.value,
            "chunkSize": CHUNK_SIZE,
            "layers": [_layer_json(layer) for layer in self.layers],
            "files": [file.to_json() for file in self.files],
        }
        if self.original is not None:
            document["original"] = self.original.to_json()
        return canonical.to_bytes(document)

    @classmethod
    def parse(cls, data: bytes) -> DerivedRecord:
        """Parse and validate a derived record. Raises InvalidImage."""
        return cls.from_json(
            canonical.parse(data, what="a derived record", most=canonical.MOST_OF_FILES)
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DerivedRecord:
        """Build and validate a record from parsed JSON. Raises InvalidImage."""
        try:
            if document["schema"] != DERIVED_SCHEMA or document["chunkSize"] != CHUNK_SIZE:
                raise InvalidImage("a derived record of another version")
            record = cls(
                manifest=Digest.parse(document["manifest"]),
                kind=ImageFormat(document["kind"]),
                files=tuple(RecordFile.from_json(each, check_path) for each in document["files"]),
                layers=tuple(_layer(each) for each in document["layers"]),
                original=Original.from_json(document["original"])
                if document.get("original")
                else None,
            )
            _check(record)
        except MALFORMED as error:
            raise InvalidImage(f"malformed derived record: {error!r}") from error
        except WeightyardError as error:
            raise InvalidImage(f"malformed derived record: {error}") from error
        return record


# A record of either kind; nodes store and use both alike.
AnyRecord = Record | DerivedRecord


def parse_record(data: bytes) -> AnyRecord:
    """Parse a record of either kind as stored by a node. Raises InvalidImage."""
    document = canonical.parse(data, what="the record", most=canonical.MOST_OF_FILES)
    # A weightyard record has `schemaVersion` instead.
    if "schema" in document:
        return DerivedRecord.from_json(document)
    return Record.parse(data)


def derive(model: ForeignModel, digests: Mapping[str, FileDigests]) -> DerivedRecord:
    """The record of a model whose layers have all been verified, given its files' computed digests by path.

    Raises DigestMismatch if a raw layer's file has another digest than the layer, InvalidImage for a missing file.
    """
    files = []
    for file in model.files:
        found = digests.get(file.path)
        if found is None:
            raise InvalidImage(f"no digests of {file.path!r}")
        # Known only for a raw layer, whose digest is its file's.
        if file.digest is not None and file.digest != found.digest:
            raise DigestMismatch(f"{file.path!r} has {found.digest}, not {file.digest}")
        files.append(
            RecordFile(
                path=file.path,
                size=file.size,
                digest=found.digest,
                role=file.role,
                layer=file.layer,
                chunks=found.chunks,
            )
        )
    # With more members than this, the record would be too large.
    keep = sum(len(layer.members or ()) for layer in model.layers) <= _MAX_MEMBERS
    layers = {
        layer.digest: DerivedLayer(
            layer.descriptor,
            _parts(layer, model.files),
            _contents(layer, model.files, digests) if keep else None,
        )
        for layer in model.layers
    }
    original = compare_with_record(model.record, files) if model.record else None
    record = DerivedRecord(model.key, model.kind, tuple(files), tuple(layers.values()), original)
    _check(record)
    return record


def _parts(layer: ForeignLayer, files: tuple[ForeignFile, ...]) -> tuple[bytes | str, ...] | None:
    """The parts of a layer, if its literals are known and small and all its files are in the model."""
    if (
        layer.literals is None
        or layer.members is None
        or sum(map(len, layer.literals)) > _MAX_LITERALS
    ):
        return None
    paths = {file.member: file.path for file in files if file.layer == layer.digest}
    held = [number for number, member in enumerate(layer.members) if member.size]
    # A file that the model leaves out isn't stored, so its bytes couldn't be put back into the blob.
    if any(number not in paths for number in held):
        return None
    # There is one literal more than files: before the first, between them, and after the last.
    parts: list[bytes | str] = [layer.literals[0]]
    for number, literal in zip(held, layer.literals[1:], strict=True):
        parts += [paths[number], literal]
    return tuple(part for part in parts if part)


def _contents(
    layer: ForeignLayer, files: tuple[ForeignFile, ...], digests: Mapping[str, FileDigests]
) -> LayerContents:
    kept = {file.member: digests[file.path] for file in files if file.layer == layer.digest}
    return LayerContents(layer.members or (), kept)


def _segment(part: bytes | str, files: Mapping[str, RecordFile]) -> Segment:
    if isinstance(part, bytes):
        return Literal(part)
    file = files[part]
    return FileSlice(LayerFile(file.path, file.size, file.digest), 0, file.size)


def _layer_json(layer: DerivedLayer) -> dict[str, Any]:
    parts = None
    if layer.parts is not None:
        parts = [
            {"file": part}
            if isinstance(part, str)
            else {"literal": base64.b64encode(part).decode()}
            for part in layer.parts
        ]
    contents = layer.contents.to_json() if layer.contents is not None else None
    return {"descriptor": layer.descriptor.to_json(), "parts": parts, "contents": contents}


def _layer(value: Mapping[str, Any]) -> DerivedLayer:
    descriptor = Descriptor.from_json(value["descriptor"])
    contents = LayerContents.parse(value["contents"]) if value.get("contents") else None
    if value["parts"] is None:
        return DerivedLayer(descriptor, None, contents)
    parts = (
        check_path(part["file"])
        if "file" in part
        else base64.b64decode(part["literal"], validate=True)
        for part in value["parts"]
    )
    return DerivedLayer(descriptor, tuple(parts), contents)


def _check(record: DerivedRecord) -> None:
    check_files(record.files)
    for layer in record.layers:
        recipe = record.recipe(layer.digest)
        # A recipe of another size would serve wrong ranges of the blob.
        if recipe is not None and recipe.size != layer.size:
            raise InvalidImage(f"layer {layer.digest} has another size")
