"""Errors of the agent that are more specific than modelimage's; the same tables map them to statuses."""

from __future__ import annotations

from modelimage.errors import Busy, DigestMismatch, Fault, NotWritable


class DiskFailed(NotWritable):
    """The disk reports an I/O error (EIO), or the filesystem is inconsistent."""


class Vanished(DiskFailed):
    """A name that the store was using is gone: removed by another command, or by hand. The disk is sound."""


class LinkRefused(NotWritable):
    """The filesystem refuses a hard link (EXDEV, EPERM, EMLINK). Never replaced by a silent copy."""


class StoreDamaged(DigestMismatch):
    """The checker found a store that breaks its invariants."""

    fault = Fault.NODE


class Cancelled(Busy):
    """The caller cancelled the request, or the agent is stopping. Repeating it continues where it stopped."""
