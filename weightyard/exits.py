"""Exit codes: one table from error classes to numbers, for scripts and CI jobs.

A class that isn't listed gets its nearest listed ancestor's code, so packages may add subclasses freely.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from modelimage import errors
from weightyard.doctor.result import PreflightFailed
from weightyard.extras import MissingExtra

OK: Final = 0
BUG: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

# Scripts depend on these numbers: one never changes its meaning.
EXIT_CODES: Final[Mapping[type[errors.WeightyardError], int]] = {
    errors.InvalidInput: USAGE,
    errors.NotFound: 3,
    errors.AccessDenied: 4,
    errors.DigestMismatch: 5,
    errors.InvalidCheckpoint: 6,
    errors.UnsafePickle: 7,
    errors.UnknownVariant: 8,
    errors.NotWritable: 9,
    errors.NoSpace: 10,
    errors.Unreachable: 11,
    errors.RateLimited: 11,
    errors.Busy: 12,
    errors.EngineFailed: 13,
    errors.TimedOut: 14,
    errors.InvalidImage: 15,
    errors.RemoteRefused: 16,
    errors.InUse: 17,
    errors.GateFailed: 18,
    MissingExtra: 19,
    PreflightFailed: 20,
}

MEANINGS: Final[Mapping[int, str]] = {
    OK: "done",
    BUG: "a bug in weightyard; please report it",
    USAGE: "an option, reference or document that can't be understood",
    3: "an image, tag, source or workspace that isn't there",
    4: "credentials missing, wrong, or not covering what was asked",
    5: "bytes that don't have the digest they should have",
    6: "a checkpoint that is missing files, truncated or inconsistent",
    7: "weights that come as pickle files, which run code when loaded",
    8: "a variant that the image doesn't hold",
    9: "a destination that can't be written",
    10: "a disk or budget that is full, or a model that doesn't fit or run on this hardware",
    11: "a remote that doesn't answer or limits the request rate; trying again may help",
    12: "something held by another process; trying again may help",
    13: "an inference server or another child program that failed",
    14: "something that wasn't ready in time",
    15: "a malformed image, manifest or record",
    16: "a remote that refused permanently or broke the protocol",
    17: "something that is in use and can't be removed",
    18: "a quality gate that failed",
    19: "a Python package that this command needs isn't installed",
    20: "a check of `weightyard doctor` that failed",
    INTERRUPTED: "interrupted with Ctrl-C",
    BROKEN_PIPE: "the reader of the output went away",
}


class RelayedError(errors.WeightyardError):
    """The error of another weightyard process: its message, and its exit code as `code`."""

    fault = errors.Fault.NODE

    def __init__(self, message: str, *, hint: str | None, code: int) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def exit_code(error: errors.WeightyardError) -> int:
    """The exit code of an error's class or its nearest listed ancestor; BUG when none is listed."""
    if isinstance(error, RelayedError):
        return error.code
    for ancestor in type(error).__mro__:
        if ancestor in EXIT_CODES:
            return EXIT_CODES[ancestor]
    return BUG
