"""A command's output: results on stdout, everything else on stderr; text, or JSON lines with --json.

Stdout has exactly one result, so it can be piped. Progress is a moving bar on a terminal, elsewhere a plain line every
few seconds, and with --json an event per second. Rich is imported only for a moving bar.

Texts come from registries, images and tenants too: all of them are written as `printable`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, Any, Final

import click

from builder.reporter import Progress
from weightyard.progress import open_progress
from weightyard.standard_streams import ReaderGone
from weightyard.text import middle_cut, one_line, printable

_LEAST_CELL: Final = 12  # as many digits of a digest as commands take
DEBUG_VARIABLE: Final = "WEIGHTYARD_DEBUG"


def debugging() -> bool:
    """Whether the environment asks for tracebacks."""
    return bool(os.environ.get(DEBUG_VARIABLE))


class Console:
    """The streams and the format of a command's output. One per run; commands get it from `pass_console`."""

    def __init__(
        self,
        *,
        out: IO[str] | None = None,
        err: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.json = False
        self.quiet = False
        self.no_color = False
        self._out = out
        self._err = err
        self._clock = clock

    def configure(self, *, json: bool = False, quiet: bool = False, no_color: bool = False) -> None:
        """Enables settings. None is ever disabled, since an option may appear before and after the command."""
        self.json = self.json or json
        self.quiet = self.quiet or quiet
        self.no_color = self.no_color or no_color

    @property
    def out(self) -> IO[str]:
        return self._out or sys.stdout

    @property
    def err(self) -> IO[str]:
        return self._err or sys.stderr

    @property
    def moving(self) -> bool:
        """Whether bars may move: stderr is a terminal and no option asks for plain output."""
        return self.err.isatty() and not (self.json or self.quiet or self.no_color)

    def result(self, document: object, text: str) -> None:
        """Writes the command's result to stdout: `document` as JSON with --json, else `text`."""
        # Not ASCII, so that names keep their letters; `printable` escapes what a terminal would obey.
        self._write(
            self.out, printable(json.dumps(document, ensure_ascii=False) if self.json else text)
        )

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        empty: str,
        document: object = None,
    ) -> None:
        """Writes rows to stdout under upper-case headings; the sentence `empty` where there is none.

        With --json it writes `document`, by default a list of objects keyed by column.
        """
        keyed = [dict(zip(columns, row, strict=True)) for row in rows]
        # Headings alone leave open whether something went wrong.
        text = format_table(columns, rows, width=self.width) if rows else empty
        self.result(keyed if document is None else document, text)

    @property
    def width(self) -> int | None:
        """The columns of the terminal that shows the result; None where it goes to a file or a pipe."""
        return shutil.get_terminal_size().columns if self.out.isatty() else None

    def say(self, text: str) -> None:
        """Writes a note to stderr; silent with --quiet."""
        if self.json:
            self.event("note", text=text)
        elif not self.quiet:
            self._write(self.err, printable(text))

    def heading(self, text: str) -> None:
        """Writes the note that opens a section: bold on a terminal, after an empty line."""
        if self.json or self.quiet:
            self.say(text)
            return
        bold = self.err.isatty() and not self.no_color
        shown = printable(text)
        self._write(self.err, "\n" + (click.style(shown, bold=True) if bold else shown))

    def event(self, name: str, **fields: Any) -> None:
        """Writes one JSON line to stderr with --json; nothing otherwise."""
        if self.json and not self.quiet:
            line = json.dumps({"event": name, **fields}, ensure_ascii=False)
            self._write(self.err, printable(line))

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Around work that a second run of the command continues: tells so when Ctrl-C ends it."""
        try:
            yield
        except KeyboardInterrupt:
            self.say("The same command goes on from here: what was done is kept.")
            raise

    def progress(
        self, title: str, total_bytes: int | None = None
    ) -> AbstractContextManager[Progress]:
        """Progress of one job; `total_bytes` None when unknown. May be advanced from any thread."""
        return open_progress(self, title, total_bytes, clock=self._clock)

    def fail(self, message: str, *, hint: str | None = None, kind: str = "Error") -> None:
        """Writes the error that ends the command, and its hint. Where nobody reads them, the exit code tells."""
        with suppress(ReaderGone):
            self._fail(message, hint, kind)

    def _fail(self, message: str, hint: str | None, kind: str) -> None:
        if self.json:
            report = {"event": "error", "kind": kind, "message": message, "hint": hint}
            self._write(self.err, printable(json.dumps(report, ensure_ascii=False)))
            return
        self._write(self.err, self._red("error:") + f" {printable(message)}")
        if hint:
            self._write(self.err, f"  hint: {printable(hint)}")
        # Imported here: only a command that fails needs it.
        from weightyard.ci_reports import annotation  # noqa: PLC0415

        told = printable(f"{message}\n{hint}" if hint else message)
        shown = annotation(os.environ, told, title=f"weightyard: {kind}")
        if shown:
            self._write(self.err, shown)

    def _red(self, text: str) -> str:
        colored = self.err.isatty() and not self.no_color
        return click.style(text, fg="red", bold=True) if colored else text

    @staticmethod
    def _write(stream: IO[str], text: str) -> None:
        try:
            stream.write(text + "\n")
            # Pipes are block-buffered: without this, readers would get lines late.
            stream.flush()
        except OSError as error:
            # The terminal was closed. Nobody reads any more, and work that goes on or is ended in order must not fail.
            if error.errno != errno.EIO:
                raise


pass_console = click.make_pass_decorator(Console, ensure=True)


def format_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None
) -> str:
    """Left-aligned columns two spaces apart, headings in upper case.

    Where `width` is too narrow, columns without any value go first; then the widest cells are shortened in the middle,
    as far as headings allow.
    """
    # Stripped at the end: padding behind the last column would wrap on narrow terminals.
    cells = [[column.upper() for column in columns]]
    cells += [["-" if value is None else one_line(str(value)) for value in row] for row in rows]
    widths = _widths(cells)
    if width is not None and _line_width(widths) > width:
        used = [
            place
            for place in range(len(columns))
            if any(row[place] not in (None, "") for row in rows)
        ]
        cells = [[line[place] for place in used] for line in cells]
        least = [max(len(cell), _LEAST_CELL) for cell in cells[0]]
        widths = _fitted(_widths(cells), least, width)
    return "\n".join(
        "  ".join(
            middle_cut(cell, size).ljust(size) for cell, size in zip(line, widths, strict=True)
        ).rstrip()
        for line in cells
    )


def _fitted(widths: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """The columns' widths within a line: the widest gives first, none goes below its least."""
    found = list(widths)
    excess = _line_width(found) - width
    while excess > 0:
        spare = [size if size > low else 0 for size, low in zip(found, least, strict=True)]
        if not any(spare):
            break
        found[spare.index(max(spare))] -= 1
        excess -= 1
    return found


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*cells, strict=True)]


def _line_width(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)
