"""The process's standard streams, whatever they are connected to: a pipe without a reader, a full disk, nothing.

A write to stdout that fails is told apart from all other failures, whoever wrote: a reader that went away ends the
program quietly, and what else there may be is an error of whoever chose that stdout. What can't be written to stderr is
lost, since nobody is left to tell. In place of a closed stream the null device is opened: else the next file would get
the stream's number, and what is printed would be written into that file.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, TextIO

from modelimage.errors import NoSpace, NotWritable, WeightyardError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ReaderGone(BrokenPipeError):
    """Who read stdout or stderr closed it. Without `errno`: on EPIPE click would end the process itself."""


class TerminalGone(ReaderGone):
    """The terminal was closed. `errno` is EIO."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """Makes failed writes to the process's own stdout raise ReaderGone, NoSpace or NotWritable while inside.

    Streams that stand in for the process's own, as in tests, stay as they are.
    """
    _open_closed_ones()
    before = sys.stdout, sys.stderr
    out = _Stdout.in_place_of(sys.stdout) if sys.stdout is sys.__stdout__ else None
    err = _Stderr.in_place_of(sys.stderr) if sys.stderr is sys.__stderr__ else None
    sys.stdout, sys.stderr = out or sys.stdout, err or sys.stderr
    try:
        yield
    finally:
        for stream in filter(None, (out, err)):
            _leave(stream)
        sys.stdout, sys.stderr = before


def _leave(stream: io.TextIOWrapper) -> None:
    # What an error kept back. Its own failure says nothing new.
    with suppress(OSError, WeightyardError):
        stream.flush()
    raw = stream.buffer.raw  # type: ignore[attr-defined] # what `in_place_of` made
    # Python flushes again at its end, and would change the exit code.
    raw.is_over = True


class _Stream(io.FileIO):
    """One of the process's streams for output. `is_over`: failures are nobody's any more."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "wb", closefd=fd > 2)
        self.is_over = False
        # A terminal that was closed isn't one any more.
        self.was_terminal = os.isatty(fd)

    @classmethod
    def in_place_of(cls, stream: TextIO | None) -> io.TextIOWrapper:
        """A text stream like another of the process, or like a closed one."""
        if stream is None:
            raw = cls(cls._closed())
            return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
        unbuffered = getattr(stream, "write_through", False)
        return io.TextIOWrapper(
            io.BufferedWriter(cls(stream.fileno())),
            stream.encoding,
            stream.errors,
            line_buffering=unbuffered or getattr(stream, "line_buffering", False),
        )

    @staticmethod
    def _closed() -> int:
        """A descriptor for a stream that is closed."""
        raise NotImplementedError

    def write(self, data: object, /) -> int:
        """Writes some of `data`; returns how many bytes."""
        size = memoryview(data).nbytes  # type: ignore[arg-type] # of a buffer
        while True:
            try:
                written = super().write(data)  # type: ignore[arg-type]
            except OSError as error:
                if not self.is_over:
                    self.fail(error)
                # Lost, and not kept for the next write.
                return size
            if written is not None:
                return int(written)
            # A pipe that is full, and that another process has set not to block.
            select.select((), (self.fileno(),), ())

    def fail(self, error: OSError) -> None:
        """What a failed write raises."""
        raise NotImplementedError


class _Stdout(_Stream):
    @staticmethod
    def _closed() -> int:
        # Writing to it fails as to a closed one: EBADF.
        return os.open(os.devnull, os.O_RDONLY)

    def fail(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            raise ReaderGone("nobody reads stdout") from error
        if error.errno == errno.EIO and self.was_terminal:
            raise TerminalGone(errno.EIO, "the terminal was closed") from error
        if error.errno == errno.EBADF:
            raise NotWritable(
                "stdout is closed", hint="Connect it: `>/dev/null` discards what is written."
            ) from error
        kind = NoSpace if error.errno in _FULL else NotWritable
        raise kind(
            f"can't write to stdout: {error.strerror}", hint="Redirect it to where there is space."
        ) from error


class _Stderr(_Stream):
    @staticmethod
    def _closed() -> int:
        return os.open(os.devnull, os.O_WRONLY)

    def fail(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            raise ReaderGone("nobody reads stderr") from error


def _open_closed_ones() -> None:
    """Opens the null device in place of closed streams, so that no file gets their numbers."""
    # Of stdout for reading: what a child writes to it fails too.
    for fd, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free.
            os.set_inheritable(os.open(os.devnull, flags), True)
