"""What a node writes down of a foreign image once it has verified every byte: the record that the image lacks.

It has the fields of a file that a weightyard record has, chunk digests derived here included, so that stores and peers
deal with one kind of file. Its key is the manifest's digest, so it need not be the same bytes everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelimage import canonical
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidImage, WeightyardError
from modelimage.foreign.model import ForeignModel, Kind
from modelimage.hashing import FileDigests
from modelimage.paths import check_path, parents
from modelimage.record import CHUNK_SIZE, RecordFile, Role

DERIVED_SCHEMA: Final = "weightyard.dev/derived/v1"
AS_PUBLISHED: Final = "as-published"
_BLAKE3 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class DerivedRecord:
    """The files of a foreign image, verified, sorted by path. Law: `DerivedRecord.parse(r.to_bytes()) == r`."""

    manifest: Digest
    kind: Kind
    files: tuple[RecordFile, ...]
    layers: tuple[Descriptor, ...]

    @property
    def key(self) -> Digest:
        """The model key."""
        return self.manifest

    @property
    def variant(self) -> str:
        """A foreign image has one precision, which it doesn't name."""
        return AS_PUBLISHED

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_bytes(self) -> bytes:
        """Canonical bytes, to be kept beside the model."""
        return canonical.to_bytes(
            {
                "schema": DERIVED_SCHEMA,
                "manifest": str(self.manifest),
                "kind": self.kind.value,
                "chunkSize": CHUNK_SIZE,
                "layers": [layer.to_json() for layer in self.layers],
                "files": [_file_json(file) for file in self.files],
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> DerivedRecord:
        """Raises InvalidImage."""
        document = canonical.parse(data, what="a derived record")
        try:
            if document["schema"] != DERIVED_SCHEMA or document["chunkSize"] != CHUNK_SIZE:
                raise InvalidImage("a derived record of another version")
            record = cls(
                manifest=Digest.parse(document["manifest"]),
                kind=Kind(document["kind"]),
                files=tuple(_file(each) for each in document["files"]),
                layers=tuple(Descriptor.from_json(each) for each in document["layers"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidImage(f"malformed derived record: {error!r}") from error
        except WeightyardError as error:
            raise InvalidImage(f"malformed derived record: {error}") from error
        _check(record)
        return record


def derive(model: ForeignModel, digests: Mapping[str, FileDigests]) -> DerivedRecord:
    """The record of a model all of whose layers were verified, with what was computed of each file, by path.

    Raises DigestMismatch where a raw layer's file has another digest than the layer, InvalidImage for a file missing.
    """
    files = []
    for file in model.files:
        found = digests.get(file.path)
        if found is None:
            raise InvalidImage(f"no digests of {file.path!r}")
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
    record = DerivedRecord(
        model.key, model.kind, tuple(files), tuple(layer.descriptor for layer in model.layers)
    )
    _check(record)
    return record


def _file_json(file: RecordFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "size": file.size,
        "sha256": file.digest.hex,
        "role": file.role.value,
        "layer": str(file.layer),
        "blake3": list(file.chunks),
    }


def _file(value: Mapping[str, Any]) -> RecordFile:
    if type(value["size"]) is not int or value["size"] < 0:
        raise ValueError(f"a size of {value['size']!r:.40}")
    return RecordFile(
        path=check_path(value["path"]),
        size=value["size"],
        digest=Digest(value["sha256"]),
        role=Role(value["role"]),
        layer=Digest.parse(value["layer"]),
        chunks=tuple(str(chunk) for chunk in value["blake3"]),
    )


def _check(record: DerivedRecord) -> None:
    paths = [file.path for file in record.files]
    directories = {parent for path in paths for parent in parents(path)}
    if paths != sorted(set(paths)) or directories & set(paths):
        raise InvalidImage("malformed derived record: paths unsorted, repeated or ambiguous")
    for file in record.files:
        if len(file.chunks) != file.chunk_count() or not all(map(_BLAKE3.fullmatch, file.chunks)):
            raise InvalidImage(f"malformed derived record: chunk digests of {file.path!r}")
