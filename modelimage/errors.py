"""Errors that Weightyard programs raise on purpose; all descend from `WeightyardError`.

A class states whose fault an error is and whether the same call may succeed later; the message states what happened,
the hint what to do next. Packages add subclasses for finer distinctions. Exit codes and HTTP statuses are mapped in
one table each, in the programs, not here. Exceptions of dependencies are mapped at the boundary and chained, so none
of them leaves a package.
"""

from __future__ import annotations

import traceback
from enum import Enum
from typing import ClassVar

from modelimage.log_text import without_credentials


class Fault(Enum):
    """Whose fault an error is."""

    CALLER = "caller"  # the command line, the YAML or the credentials given
    CONTENT = "content"  # the bytes of a checkpoint, an image or a file
    REMOTE = "remote"  # a registry, hub, object store or peer
    NODE = "node"  # this machine: disk, memory, permissions, processes


class WeightyardError(Exception):
    """Base of all errors raised on purpose.

    `hint` is one sentence in the imperative: the user's next step. `kind` is the name of its class, also where another
    process raised it and only a more general class is known here.
    """

    fault: ClassVar[Fault]
    retry: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # Messages quote others, who may repeat what they were sent; they end in logs, status and terminals.
        self.message = without_credentials(message)
        super().__init__(self.message)
        self.hint = hint
        self.kind = type(self).__name__


class InvalidInput(WeightyardError):
    """A value given by the caller is invalid: a reference, a YAML document, an option."""

    fault = Fault.CALLER


class UnknownVariant(InvalidInput):
    """The image doesn't contain this variant, or no such variant exists."""


class NotFound(WeightyardError):
    """A source, image, tag, blob or file isn't where the caller said it is. Only this is a 404."""

    fault = Fault.CALLER


class AccessDenied(WeightyardError):
    """Credentials are missing, wrong, or don't cover the request (401 and 403)."""

    fault = Fault.CALLER


class InvalidCheckpoint(WeightyardError):
    """The weight files are missing, truncated, overlapping, oversized or inconsistent."""

    fault = Fault.CONTENT


class UnsafePickle(InvalidCheckpoint):
    """Weights come as pickle files, which execute code when loaded."""


class InvalidImage(WeightyardError):
    """A manifest, config, record or layer is malformed, or names a path that leaves its root."""

    fault = Fault.CONTENT


class DigestMismatch(WeightyardError):
    """Bytes don't match the digest in a trusted description."""

    fault = Fault.CONTENT


class Unreachable(WeightyardError):
    """A remote didn't respond, disconnected, or stopped making progress."""

    fault = Fault.REMOTE
    retry = True


class RemoteRefused(WeightyardError):
    """A remote's response violates the protocol, or is a permanent refusal."""

    fault = Fault.REMOTE


class RateLimited(Unreachable):
    """A remote limits the request rate (429, 503). `retry_after` is in seconds, if the remote gave one.

    `outage`: it answered 503, with which whatever stands before a remote also says that it is away.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
        outage: bool = False,
    ):
        super().__init__(message, hint=hint)
        self.retry_after, self.outage = retry_after, outage


class NotWritable(WeightyardError):
    """A destination on this machine can't be written: permissions, read-only, not a directory."""

    fault = Fault.NODE


class NoSpace(WeightyardError):
    """A disk, quota or budget is full (ENOSPC, EDQUOT, or the space ledger's refusal)."""

    fault = Fault.NODE


class Busy(WeightyardError):
    """Another process holds a required resource (a store's lock, a port)."""

    fault = Fault.NODE
    retry = True


class InUse(WeightyardError):
    """The item to be removed is leased or pinned."""

    fault = Fault.CALLER
    retry = True


class EngineFailed(WeightyardError):
    """A child program (an inference server, a quantization engine) is missing, failed or died."""

    fault = Fault.NODE


class TimedOut(WeightyardError):
    """Something wasn't ready within its deadline."""

    fault = Fault.NODE
    retry = True


class GateFailed(WeightyardError):
    """The result is valid but worse than the configured bounds."""

    fault = Fault.CONTENT


def public_name(error: WeightyardError) -> str:
    """The name of the error's nearest class in this module: what is told to other processes, which know no others."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)


def why(error: Exception) -> str:
    """What the system says of a failed call, without its number and path, which messages of ours name already."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def first_line(error: Exception) -> str:
    """The first line of a dependency's error, at most 200 characters, for a message of ours; else its class."""
    return str(error).split("\n", 1)[0][:200] or type(error).__name__


def release_locals(error: BaseException) -> None:
    """Drop what the functions that an error came through still hold, such as the document that one of them refused.

    For errors that are kept. Their tracebacks stay.
    """
    # By `raise ... from`, errors can be each other's cause in a circle.
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            left += [each.__cause__, each.__context__]
