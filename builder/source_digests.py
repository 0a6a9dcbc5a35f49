"""Compares a source's stated file digests with those computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelimage.digest import Digest
from modelimage.errors import DigestMismatch
from modelimage.record import RecordFile


def check_claims(files: Sequence[RecordFile], claimed: Mapping[str, Digest]) -> None:
    """Raise DigestMismatch for the first file whose digest differs from its source's."""
    for file in files:
        check_claim(file.path, file.digest, claimed)


def check_claim(path: str, digest: Digest, claimed: Mapping[str, Digest]) -> None:
    """Raise DigestMismatch if the source states another digest for this file."""
    stated = claimed.get(path)
    if stated is not None and stated != digest:
        raise DigestMismatch(
            f"{path} has sha256 {digest.hex}, but its source says {stated.hex}",
            hint="The downloaded copy is damaged: remove it from the cache and build again.",
        )
