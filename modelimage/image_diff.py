"""Compares two model images: changed files, new layers, and the bytes that an update transfers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from modelimage.record import Record, RecordFile, RecordLayer


class Change(Enum):
    """How a file differs between the first image and the second."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class FileChange:
    """One differing file; sizes in bytes, None in the image that lacks it."""

    path: str
    change: Change
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Result of a comparison. `layers`: those only the second image has, which an update transfers."""

    files: tuple[FileChange, ...]
    layers: tuple[RecordLayer, ...]
    shared_bytes: int

    @property
    def moved_bytes(self) -> int:
        """Bytes of layers that an update from the first image to the second transfers."""
        return sum(layer.size for layer in self.layers)


def compare(before: Record, after: Record) -> Difference:
    """Compare two records. Law: equal records have no differences."""
    old, new = _by_path(before), _by_path(after)
    changes = [
        change
        for path in sorted(old.keys() | new.keys())
        if (change := _change(path, old.get(path), new.get(path))) is not None
    ]
    held = {layer.digest for layer in before.layers}
    moved = tuple(layer for layer in after.layers if layer.digest not in held)
    shared = sum(layer.size for layer in after.layers if layer.digest in held)
    return Difference(tuple(changes), moved, shared)


def _by_path(record: Record) -> Mapping[str, RecordFile]:
    return {file.path: file for file in record.files}


def _change(path: str, old: RecordFile | None, new: RecordFile | None) -> FileChange | None:
    if old is None and new is not None:
        return FileChange(path, Change.ADDED, None, new.size)
    if new is None and old is not None:
        return FileChange(path, Change.REMOVED, old.size, None)
    if old and new and (old.digest, old.size) != (new.digest, new.size):
        return FileChange(path, Change.CHANGED, old.size, new.size)
    return None
