"""The weightyard record that another tool's image still carries, and what it says about the image's files.

podman, buildah, docker and registries drop annotations, compress layers and merge them. The record survives as a file.
It then no longer describes the image's layers, so the image is read as a foreign one, and its files are compared with
the record once their digests are computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.foreign.layer_stream import open_layer
from modelimage.foreign.limits import Limits
from modelimage.foreign.model import (
    ESTARGZ_NAMES,
    ForeignLayer,
    ForeignModel,
    ImageFormat,
    Packing,
)
from modelimage.foreign.tarwalk import MemberKind
from modelimage.hasher import fill
from modelimage.path_rules import RECORD_NAME
from modelimage.ranges import ByteRange
from modelimage.record import MAX_RECORD_BYTES, Record
from modelimage.repository import ImageReader
from modelimage.resolve import parse_record, record_place

# Stored with the model: enough to see what was changed.
_MOST_PATHS: Final = 20


class _File(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def digest(self) -> Digest | None: ...


@dataclass(frozen=True, slots=True)
class Original:
    """The weightyard image that an image was made from: its model key, its variant, and the paths that differ."""

    key: Digest
    variant: str
    differs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"key": str(self.key), "variant": self.variant, "differs": list(self.differs)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Original:
        """Parse `to_json`'s output. Raises KeyError, TypeError, ValueError, WeightyardError."""
        return cls(
            Digest.parse(value["key"]),
            str(value["variant"]),
            tuple(str(path) for path in value["differs"]),
        )

    def __str__(self) -> str:
        """What is proved about the image, and what is not, as a sentence."""
        made = f"another tool made this image from the weightyard image {self.key.short}"
        if self.differs:
            shown = ", ".join(self.differs[:3]) + (" …" if len(self.differs) > 3 else "")
            return f"{made} and changed files; those that its record does not vouch for: {shown}"
        return (
            f"{made} ({self.variant}): every file is as its record says, but its layers are others, so signatures "
            "of the original do not cover it and its chunks can't be fetched one by one"
        )


def compare_with_record(record: Record, files: Iterable[_File]) -> Original:
    """Compare an image's files, whose digests were computed, with its record. A file without a digest differs. Pure."""
    found = {file.path: (file.size, file.digest) for file in files}
    stated = {file.path: (file.size, file.digest) for file in record.files}
    paths = sorted(p for p in found.keys() | stated.keys() if found.get(p) != stated.get(p))
    return Original(record.key, record.variant, tuple(paths[:_MOST_PATHS]))


def carried_record(
    reader: ImageReader, kind: ImageFormat, layers: Sequence[ForeignLayer]
) -> tuple[int, Record] | None:
    """The position of a layer that holds a record and nothing else, and the record, verified by the layer's digest.

    Raises DigestMismatch, and any error of the reader.
    """
    if kind not in (ImageFormat.IMAGE, ImageFormat.MODELPACK):
        return None
    place = record_place([e.descriptor for e in layers], [e.diff_id for e in layers])
    if place is None or layers[place].packing is Packing.RAW:
        return None
    layer = layers[place]
    if layer.descriptor.size > MAX_RECORD_BYTES:
        return None
    # Besides the record, which is one member, eStargz adds its own.
    most = 1 + len(ESTARGZ_NAMES)
    bounds = Limits(members=most, file_bytes=MAX_RECORD_BYTES, total_bytes=2 * MAX_RECORD_BYTES)
    try:
        with open_layer(reader, layer, limits=bounds) as stream:
            pieces = [(piece.member, bytes(piece.data)) for piece in stream]
        named = {
            number: (member.path, member.kind)
            for number, member in enumerate(stream.members)
            if member.path not in ESTARGZ_NAMES
        }
    # Some other layer, or more than a record.
    except InvalidImage:
        return None
    if list(named.values()) != [(RECORD_NAME, MemberKind.FILE)]:
        return None
    record = readable_record(b"".join(data for number, data in pieces if number in named))
    return None if record is None else (place, record)


def with_listed_record(reader: ImageReader, model: ForeignModel) -> ForeignModel:
    """The model with the record that lies among its files, in an uncompressed layer. Its bytes are not verified yet."""
    file = model.record_file
    if model.record or file is None or file.offset is None or file.size > MAX_RECORD_BYTES:
        return model
    data = bytearray(file.size)
    span = ByteRange(file.offset, file.offset + file.size)
    with reader.blob(model.layer(file.layer).descriptor, span) as stream:
        count = fill(memoryview(data), stream.readinto)
    return replace(model, record=readable_record(bytes(data[:count])))


def readable_record(data: bytes) -> Record | None:
    """The record in these bytes; None if they aren't one: the image is then one like any other."""
    try:
        return parse_record(data)
    except InvalidImage:
        return None
