"""Errors of the agent that are more specific than modelimage's; the same tables map them to statuses."""

from __future__ import annotations

import errno

from modelimage.errors import Busy, DigestMismatch, Fault, NotFound, NotWritable, WeightyardError


class DiskFailed(NotWritable):
    """The disk reports an I/O error (EIO), or the filesystem is inconsistent."""


class Vanished(DiskFailed):
    """A name that the store was using is gone: removed by another command, or by hand. The disk is sound."""


class Exhausted(Busy):
    """The process may open no more files, or has no memory left.

    No DiskFailed: what can't be looked at now is neither damaged nor missing.
    """


class LinkRefused(NotWritable):
    """The filesystem refuses a hard link (EXDEV, EPERM, EMLINK). Never replaced by a silent copy."""


class NoStore(NotFound):
    """A directory holds no store, and the caller creates none."""


def cancelled() -> Cancelled:
    """The error of a pull that was cancelled."""
    return Cancelled("the pull was cancelled", hint="Pull again to continue where it stopped.")


def too_many_pulls(count: int) -> Busy:
    """The error of a pull that isn't even let wait."""
    return Busy(f"{count:,} pulls wait for their turn already", hint="Try again in a minute.")


def is_exhaustion(error: BaseException) -> bool:
    """Whether a system call was refused for want of descriptors or memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    )


def exhausted(what: str, error: BaseException) -> Exhausted:
    """The error for such a refusal. `what`: what wasn't done."""
    return Exhausted(
        f"{what}: {error.strerror if isinstance(error, OSError) else 'no memory left'}",
        hint="Try again. If it stays, raise the agent's limit of open files (LimitNOFILE, ulimit -n) or of memory.",
    )


def no_thread(error: RuntimeError) -> Busy:
    """The error for a thread that the system refused to start."""
    return Busy(
        f"no thread can be started: {error}",
        hint="Raise the limit of processes (pids) of the agent's container.",
    )


class StoreDamaged(DigestMismatch):
    """The checker found a store that breaks its invariants."""

    fault = Fault.NODE


class AgentBug(WeightyardError):
    """The agent met an error that nobody foresaw. Its log has the traceback."""

    fault = Fault.NODE


class Cancelled(Busy):
    """The caller cancelled the request, or the agent is stopping. Repeating it continues where it stopped."""
