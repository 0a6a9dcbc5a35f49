"""Compares a source's stated file digests with those computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelimage.digest import Digest
from modelimage.errors import DigestMismatch
from modelimage.record import RecordFile


def check_claims(files: Sequence[RecordFile], claimed: Mapping[str, Digest]) -> None:
    """Raise DigestMismatch for the first file whose digest differs from its source's."""
    for file in files:
        promised = claimed.get(file.path)
        if promised is not None and promised != file.digest:
            raise DigestMismatch(
                f"{file.path} has sha256 {file.digest.hex}, but its source says {promised.hex}",
                hint="The downloaded copy is damaged: remove it from the cache and build again.",
            )
