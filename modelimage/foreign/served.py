"""Foreign images as planners see them: files and model facts, before or after the image is pulled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelimage.descriptor import Descriptor, Platform
from modelimage.digest import Digest
from modelimage.durable import reading
from modelimage.errors import InvalidImage
from modelimage.foreign.derived import AS_PUBLISHED, DerivedRecord
from modelimage.foreign.describe import describe_foreign
from modelimage.foreign.model import ForeignFile, ForeignModel
from modelimage.hasher import fill
from modelimage.model_facts import file_facts
from modelimage.ranges import ByteRange
from modelimage.record import ModelFacts, RecordFile
from modelimage.repository import ImageReader


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A foreign model's data for planners, equivalent to a record. `key` is the model key.

    `variant`: that of the weightyard image that it was made from, if it carries its record; else a fixed one.
    """

    key: Digest
    facts: ModelFacts
    files: Sequence[ForeignFile | RecordFile]
    variant: str = AS_PUBLISHED


def served_from_image(reader: ImageReader, root: Descriptor, platform: Platform) -> ServedModel:
    """Read from a registry or layout with a few small range reads.

    Of compressed layers nothing is known but what a carried record says. Raises InvalidImage without one.
    """
    model = describe_foreign(reader, root, platform=platform)
    if model.record and not model.is_listed:
        return ServedModel(model.key, model.record.facts, model.record.files, model.record.variant)
    # A file in a compressed layer has no offset in the blob, so no range of it can be asked for.
    if not model.is_listed or any(file.offset is None for file in model.files):
        raise InvalidImage(
            "the image's layers are compressed, so its weights can't be read before it is pulled",
            hint="Build the model with `weightyard build`, or publish it with uncompressed layers.",
        )
    found = {file.path: file for file in model.files}

    def read(path: str, wanted: ByteRange) -> bytes:
        file = found[path]
        start = file.offset or 0
        span = ByteRange(start + wanted.start, start + wanted.stop)
        return _read(reader, model.layer(file.layer).descriptor, span)

    facts = file_facts({path: file.size for path, file in found.items()}, read)
    return ServedModel(model.key, facts, model.files, _variant(model))


def _variant(model: ForeignModel) -> str:
    stated = {file.path: file.size for file in model.record.files} if model.record else None
    # By sizes: before a pull, no digest of a file has been computed.
    same = stated == {file.path: file.size for file in model.files}
    return model.record.variant if model.record and same else AS_PUBLISHED


def served_from_directory(directory: Path, record: DerivedRecord) -> ServedModel:
    """Read from the directory of a pulled model. Raises InvalidImage, NotFound, AccessDenied."""

    def read(path: str, wanted: ByteRange) -> bytes:
        place = directory / path
        with reading(place), place.open("rb") as file:
            file.seek(wanted.start)
            return file.read(len(wanted))

    facts = file_facts({file.path: file.size for file in record.files}, read)
    return ServedModel(record.key, facts, record.files, record.variant)


def _read(reader: ImageReader, layer: Descriptor, wanted: ByteRange) -> bytes:
    view = memoryview(bytearray(len(wanted)))
    with reader.blob(layer, wanted) as stream:
        return bytes(view[: fill(view, stream.readinto)])
