"""Exit codes: one table from error classes to numbers, for scripts and CI jobs.

A class that isn't listed gets its nearest listed ancestor's code, so packages may add subclasses freely. An error of an
agent has the same code as the same error without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cache_agent.errors import AgentBug
from modelimage import errors
from weightyard.doctor.result import PreflightFailed
from weightyard.extras import MissingExtra

OK: Final = 0
BUG: Final = 1
USAGE: Final = 2
# 128 and the signal's number, as shells report SIGINT and SIGPIPE.
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
    AgentBug: BUG,
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code says, and what to do."""

    what: str
    to_do: str = ""


MEANINGS: Final[Mapping[int, Meaning]] = {
    OK: Meaning("done"),
    BUG: Meaning(
        "a bug in weightyard, here or in the agent", "report it; `WEIGHTYARD_DEBUG=1` shows where"
    ),
    USAGE: Meaning("an option, reference or document that can't be understood", "see `--help`"),
    3: Meaning(
        "an image, tag, source, store or workspace that isn't there",
        "check the name; without credentials, private ones look absent",
    ),
    4: Meaning(
        "credentials missing, wrong, or not covering what was asked; no signature by a trusted key",
        "log in, accept the terms, fix permissions, have the image signed",
    ),
    5: Meaning("bytes that don't have the digest they should have", "fetch or build them again"),
    6: Meaning(
        "a checkpoint that is missing files, truncated or inconsistent", "download it again"
    ),
    7: Meaning(
        "weights that come as pickle files, which run code when loaded",
        "another revision, or `--convert-pickle`",
    ),
    8: Meaning("a variant that the image doesn't hold", "choose one that the message lists"),
    9: Meaning(
        "a destination that can't be written, or a closed stdout",
        "another directory, or permissions",
    ),
    10: Meaning(
        "a disk or budget that is full, or a model that doesn't fit or run on this hardware",
        "free space, raise the budget, or choose another variant",
    ),
    11: Meaning("a remote that doesn't answer or limits the request rate", "try again"),
    12: Meaning("something held by another process", "try again"),
    13: Meaning(
        "an inference server or another child program that failed", "see the message and its log"
    ),
    14: Meaning("something that wasn't ready in time", "try again, or wait longer"),
    15: Meaning("a malformed image, manifest or record", "build it again"),
    16: Meaning(
        "a remote that refused permanently or broke the protocol", "the hint says which limit"
    ),
    17: Meaning(
        "something that is in use and can't be removed",
        "stop what uses it; `weightyard ls` shows it",
    ),
    18: Meaning(
        "a quality gate or a probe that failed",
        "another engine or scheme; see which probe failed, and why",
    ),
    19: Meaning(
        "a Python package that this command needs isn't installed", "the hint names the extra"
    ),
    20: Meaning("a check of `weightyard doctor` that failed", "each finding says what to do"),
    INTERRUPTED: Meaning("interrupted with Ctrl-C", "run it again"),
    BROKEN_PIPE: Meaning("the reader of the output went away, as `head` does; nothing is said"),
}


class RelayedError(errors.WeightyardError):
    """The error of another weightyard process: its message and `kind`, and its exit code as `code`."""

    fault = errors.Fault.NODE

    def __init__(self, message: str, *, hint: str | None, code: int, kind: str) -> None:
        super().__init__(message, hint=hint)
        self.code, self.kind = code, kind


def exit_code(error: errors.WeightyardError) -> int:
    """The exit code of an error's class or its nearest listed ancestor; BUG when none is listed."""
    if isinstance(error, RelayedError):
        return error.code
    for ancestor in type(error).__mro__:
        if ancestor in EXIT_CODES:
            return EXIT_CODES[ancestor]
    return BUG
