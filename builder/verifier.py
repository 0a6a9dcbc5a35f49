"""Reads an image or an unpacked model directory completely and reports every problem found.

Trust runs manifest -> blob digest -> record -> file -> chunk, and every step is computed here: until then a record is
only its author's claim. Verification continues after the first problem, so that one run reports all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from builder.sources.interface import Advance
from modelimage import canonical
from modelimage.descriptor import Descriptor, descriptors
from modelimage.digest import Digest
from modelimage.durable import reading
from modelimage.errors import DigestMismatch, InvalidImage, NotFound, WeightyardError
from modelimage.foreign import (
    AnyRecord,
    ForeignLayer,
    ForeignModel,
    LayerStream,
    Original,
    TarMember,
    compare_with_record,
    open_layer,
    parse_record,
    readable_record,
)
from modelimage.hasher import EMPTY_FILE, FileDigests, hash_file, hash_stream
from modelimage.path_rules import RECORD_NAME
from modelimage.recipe import Recipe
from modelimage.record import MAX_RECORD_BYTES, Record, RecordFile
from modelimage.repository import ImageReader
from modelimage.resolve import list_models, read_model
from modelimage.stage_workers import run_all

# Hashing one file already keeps several cores busy.
_READS_AT_ONCE: Final = 2
# Kept in memory, of one layer: an image has one.
_MOST_RECORDS: Final = 4
_NO_RECIPE: Final = Recipe.from_segments(())


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: the blob or path concerned, and a description."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The amount of data read, and the problems found; `problems` is empty if everything is intact.

    `original`: what the record says of the files, in an image that another tool made from a weightyard image.
    """

    checked: int
    size: int
    problems: tuple[Problem, ...]
    original: Original | None = None

    def raise_problems(self) -> None:
        """Raise DigestMismatch with the first problem, if there is one."""
        if self.problems:
            first = self.problems[0]
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise DigestMismatch(
                f"{first.where}: {first.what}{more}",
                hint="Fetch or build it again: damaged content can't be repaired in place.",
            )


@dataclass(frozen=True, slots=True)
class ImageContents:
    """All blobs of an image, and its records."""

    blobs: Mapping[Digest, Descriptor]
    records: tuple[Record, ...]

    @property
    def size(self) -> int:
        return sum(blob.size for blob in self.blobs.values())


def image_contents(reader: ImageReader, name: str) -> ImageContents:
    """Follow an image from its tag or digest to all its blobs. Manifests and records are verified on the way.

    Raises NotFound, AccessDenied, DigestMismatch, InvalidImage, Unreachable.
    """
    root = reader.resolve(name)
    manifests = list_models(reader, root)
    blobs: dict[Digest, Descriptor] = {}
    records: dict[Digest, Record] = {}
    for manifest in manifests:
        what = f"manifest {manifest.digest}"
        document = canonical.parse(reader.manifest(manifest), what=what)
        layers = descriptors(document, "layers", what=what)
        config = Descriptor.from_json(document.get("config"))
        blobs.update({blob.digest: blob for blob in (config, *layers)})
        # Manifests of other formats in the index have no record; their blobs are verified all the same.
        model = read_model(reader, root, manifest, manifests)
        if model is not None:
            records[model.record.key] = model.record
    return ImageContents(blobs, tuple(records.values()))


def verify_image(reader: ImageReader, contents: ImageContents, advance: Advance) -> Verification:
    """Read every blob and compare it with its digest, and its files with the records."""

    def check(blob: Descriptor, guarded: Advance) -> list[Problem]:
        return list(_check_blob(reader, blob, contents.records, guarded))

    found = run_all(contents.blobs.values(), check, advance=advance, workers=_READS_AT_ONCE)
    problems = tuple(problem for each in found for problem in each)
    return Verification(len(contents.blobs), contents.size, problems)


def verify_foreign(reader: ImageReader, model: ForeignModel, advance: Advance) -> Verification:
    """Read every layer of a foreign image and check its digest, its diff_id, and the paths of its members.

    If the image carries a record, its files are compared with it.
    """
    # Files are hashed only where a record may be there to compare them with: a compressed layer shows it at its end.
    hashing = model.record is not None or not model.is_listed

    def check(layer: ForeignLayer, guarded: Advance) -> list[Problem]:
        try:
            with open_layer(reader, layer, limits=model.limits, progress=guarded) as stream:
                # Reading to the end is what verifies the layer.
                contents[layer.digest] = _hash_files(stream, hashing=hashing)
        # Other errors end the verification, because they are not about the image.
        except (NotFound, DigestMismatch, InvalidImage) as error:
            return [Problem(str(layer.digest), error.message)]
        found[layer.digest] = stream.members
        return []

    found: dict[Digest, Sequence[TarMember]] = {}
    contents: dict[Digest, _Files] = {}
    original: Original | None = None
    layers = {layer.digest: layer for layer in model.layers}
    results = run_all(layers.values(), check, advance=advance, workers=_READS_AT_ONCE)
    problems = [problem for each in results for problem in each]
    # Paths can be checked only over all layers: whiteouts and links refer to other layers.
    if not problems:
        try:
            original = _original(model.listed(found), contents)
        except InvalidImage as error:
            problems.append(Problem(str(model.key), error.message))
    size = sum(layer.descriptor.size for layer in layers.values())
    return Verification(len(layers), size, tuple(problems), original)


@dataclass(frozen=True, slots=True)
class _Files:
    """Of one layer, by member: the digests of its files, and the first files with a record's name and size."""

    digests: Mapping[int, Digest]
    records: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class _HashedFile:
    path: str
    size: int
    digest: Digest | None


def _hash_files(stream: LayerStream, *, hashing: bool) -> _Files:
    hashers: dict[int, Any] = {}
    records: dict[int, bytearray] = {}
    for piece in stream:
        if not hashing:
            continue
        hashers.setdefault(piece.member, hashlib.sha256()).update(piece.data)
        # Wherever it lies: whether that is where the image has its model is known at the end.
        named = stream.path(piece.member).rpartition("/")[2] == RECORD_NAME
        if not named or piece.size > MAX_RECORD_BYTES:
            continue
        if piece.member in records or len(records) < _MOST_RECORDS:
            records.setdefault(piece.member, bytearray()).extend(piece.data)
    digests = {member: Digest(hasher.hexdigest()) for member, hasher in hashers.items()}
    return _Files(digests, {member: bytes(data) for member, data in records.items()})


def _original(model: ForeignModel, contents: Mapping[Digest, _Files]) -> Original | None:
    """What the carried record says of the verified files of an image; None without a record."""
    record = model.record
    if record is None and model.record_file is not None:
        data = contents[model.record_file.layer].records.get(model.record_file.member)
        record = None if data is None else readable_record(data)
    if record is None:
        return None
    files = (
        _HashedFile(file.path, file.size, contents[file.layer].digests.get(file.member))
        for file in model.files
    )
    return compare_with_record(record, files)


def read_record(directory: Path) -> AnyRecord:
    """The record of an unpacked model directory. Raises NotFound, InvalidImage."""
    path = directory / RECORD_NAME
    with reading(path), path.open("rb") as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidImage(f"{path} is larger than {MAX_RECORD_BYTES} bytes")
    return parse_record(data)


def verify_directory(directory: Path, record: AnyRecord, advance: Advance) -> Verification:
    """Read every file of an unpacked model and compare it with the record; additional files are problems too."""

    def check(file: RecordFile, guarded: Advance) -> list[Problem]:
        return _check_file(directory, file, guarded)

    found = run_all(record.files, check, advance=advance, workers=_READS_AT_ONCE)
    # Additional files are reported because an engine could load them.
    strangers = sorted(_paths(directory) - {file.path for file in record.files} - {RECORD_NAME})
    problems = [
        *(problem for each in found for problem in each),
        *(Problem(path, "is not in the record") for path in strangers),
    ]
    return Verification(len(record.files), record.size, tuple(problems))


def compare(file: RecordFile, found: FileDigests) -> list[Problem]:
    """The problems of a file whose bytes have these digests. Pure."""
    if found.digest == file.digest and found.chunks == file.chunks:
        return []
    if found.digest == file.digest:
        return [Problem(file.path, "has the right bytes, but the record's chunk digests are wrong")]
    bad = [
        str(number)
        for number, (ours, promised) in enumerate(zip(found.chunks, file.chunks, strict=False))
        if ours != promised
    ]
    where = f"; wrong chunks of 32 MiB: {', '.join(bad[:8])}" if bad else ""
    more = " …" if len(bad) > 8 else ""
    return [
        Problem(file.path, f"has sha256 {found.digest.hex}, not {file.digest.hex}{where}{more}")
    ]


def _check_file(directory: Path, file: RecordFile, advance: Advance) -> list[Problem]:
    path = directory / file.path
    try:
        with reading(path):
            size = path.stat().st_size
        if size != file.size:
            # Counted as read, so that the progress still reaches its total.
            advance(file.size)
            return [Problem(file.path, f"has {size} bytes, not {file.size}")]
        return compare(file, hash_file(path, progress=advance))
    except NotFound:
        advance(file.size)
        return [Problem(file.path, "is missing")]
    except WeightyardError as error:
        return [Problem(file.path, error.message)]


def _check_blob(
    reader: ImageReader, blob: Descriptor, records: Iterable[Record], advance: Advance
) -> Iterator[Problem]:
    name = str(blob.digest)
    holders = [record for record in records if record.layer_files(blob.digest)]
    recipe = holders[0].recipe(blob.digest) if holders else _NO_RECIPE
    try:
        with reader.blob(blob) as stream:
            found = hash_stream(recipe, stream.readinto, progress=advance)
    except NotFound:
        yield Problem(name, "the blob is missing")
        return
    except (DigestMismatch, InvalidImage) as error:
        yield Problem(name, error.message)
        return
    if found.digest != blob.digest:
        yield Problem(name, f"the blob's bytes have the digest {found.digest}")
    # Configs, links and base layers are in no record and have no recipe.
    if holders and not found.follows_recipe:
        yield Problem(name, "the layer has other files than the record")
    # All records are compared: variants that share a layer may still state different digests.
    for record in holders:
        for file in record.layer_files(blob.digest):
            digests = found.files.get(file.path) if file.size else EMPTY_FILE
            if digests is not None:
                yield from compare(file, digests)


def _paths(directory: Path) -> set[str]:
    with reading(directory):
        return {
            (Path(folder) / name).relative_to(directory).as_posix()
            for folder, _, names in os.walk(directory)
            for name in names
        }
