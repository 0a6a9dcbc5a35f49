"""Errors of the node store that need a finer name than modelimage's; still mapped by the same tables."""

from __future__ import annotations

from modelimage.errors import Fault, NotWritable, WeightyardError


class DiskFailed(NotWritable):
    """The disk answers with an error of its own (EIO) or the filesystem is inconsistent."""


class LinkRefused(NotWritable):
    """The filesystem won't make a hard link (EXDEV, EPERM, EMLINK): never worked around by a silent copy."""


class StoreDamaged(WeightyardError):
    """The checker found invariants of a store broken."""

    fault = Fault.NODE


class Cancelled(WeightyardError):
    """The caller took the request back."""

    fault = Fault.CALLER
