"""Errors of the node store that need a finer name than modelimage's; still mapped by the same tables."""

from __future__ import annotations

from modelimage.errors import Busy, DigestMismatch, Fault, NotWritable


class DiskFailed(NotWritable):
    """The disk answers with an error of its own (EIO) or the filesystem is inconsistent."""


class LinkRefused(NotWritable):
    """The filesystem won't make a hard link (EXDEV, EPERM, EMLINK): never worked around by a silent copy."""


class StoreDamaged(DigestMismatch):
    """The checker found invariants of a store broken."""

    fault = Fault.NODE


class Cancelled(Busy):
    """The request was taken back, by its caller or because the agent stops. Asking again continues it."""
