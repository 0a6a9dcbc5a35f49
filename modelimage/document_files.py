"""Reads documents that people write, never more of them than a document may have."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

from modelimage.bounds import MOST_DOCUMENT_BYTES
from modelimage.errors import InvalidInput

_SHOWN: Final = 200  # characters of a path in messages


def read_document(path: Path) -> str:
    """The text of a file. Raises OSError; InvalidInput for what is no regular file, too large, or not UTF-8.

    A pipe or a device is never waited for.
    """
    name = str(path)[:_SHOWN]
    # Not blocking: opening a pipe waits for its writer.
    with open(path, "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InvalidInput(f"{name} isn't a regular file")
        return _text(file.read(MOST_DOCUMENT_BYTES + 1), name)


def read_stdin() -> str:
    """The text of stdin. Raises InvalidInput."""
    # A closed one is None.
    if sys.stdin is None:
        raise InvalidInput("stdin is closed", hint="Name a file.")
    # A stand-in for stdin may have text alone.
    binary = getattr(sys.stdin, "buffer", None)
    if binary is None:
        return _text(sys.stdin.read(MOST_DOCUMENT_BYTES + 1).encode(), "stdin")
    return _text(binary.read(MOST_DOCUMENT_BYTES + 1), "stdin")


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _text(data: bytes, name: str) -> str:
    if len(data) > MOST_DOCUMENT_BYTES:
        raise InvalidInput(f"{name} has more than {MOST_DOCUMENT_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} isn't UTF-8 text") from error
