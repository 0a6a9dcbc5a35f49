"""Runs commands on a terminal and draws the screen that they leave as an SVG picture: the one in README.md.

    python scripts/terminal_capture.py     run COMMANDS in an empty directory, write docs/images/terminal.svg

Every byte in the picture was printed by a real run of the demonstration model on this machine. Only paths below that
directory are shortened, to `~`. The picture refers to nothing outside itself, no font either.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import IO, Final

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

REPOSITORY: Final = Path(__file__).parent.parent
PICTURE: Final = REPOSITORY / "docs" / "images" / "terminal.svg"
COLUMNS: Final = 112
ROWS: Final = 200  # nothing scrolls away
COMMANDS: Final = (
    "weightyard build ./SmolLM2-135M-Instruct --to oci:./smollm2:v1 --variant int8",
    "weightyard pull oci:./smollm2:v1",
    "weightyard verify oci:./smollm2:v1",
    "weightyard up --detach --cpu --port 8137 workspace.yaml",
    "curl -s http://127.0.0.1:8137/v1/completions -H 'Content-Type: application/json' \\\n"
    '    -d \'{"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 2}\' \\\n'
    '    | grep -o \'"text":"[^"]*"\'',
    "weightyard down smollm2",
)
WORKSPACE: Final = """\
apiVersion: weightyard.dev/v1alpha1
kind: Workspace
metadata:
  name: smollm2
spec:
  model:
    image: oci:./smollm2:v1
"""
# rich's own template loads a font from a server
_SVG: Final = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" \
aria-label="A terminal">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; \
font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
_TOKEN: Final = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07|[\r\n\b]|[^\x00-\x1f]")


class Screen:
    """A terminal's screen, of endless height. Knows what progress bars use: cursor up, erase line, colours."""

    def __init__(self) -> None:
        self._lines: list[list[tuple[str, str]]] = [[]]  # of (character, its SGR codes)
        self._row = 0
        self._column = 0
        self._style = ""

    def feed(self, text: str) -> None:
        """Shows what a program wrote. An escape sequence that isn't known is ignored."""
        for token in _TOKEN.finditer(text):
            if token[2]:
                self._control(token[1], token[2])
            elif token[0] == "\r":
                self._column = 0
            elif token[0] == "\n":
                self._row += 1
                while self._row >= len(self._lines):
                    self._lines.append([])
            elif not token[0].startswith("\x1b"):
                self._put(token[0])

    def _control(self, numbers: str, name: str) -> None:
        if name == "m":
            self._style = "" if numbers in ("", "0") else f"{self._style}\x1b[{numbers}m"
        elif name == "C":
            self._column += int(numbers or 1)
        elif name == "A":
            self._row = max(0, self._row - int(numbers or 1))
        elif name == "K":
            line = self._lines[self._row]
            del line[0 if numbers == "2" else self._column :]

    def _put(self, character: str) -> None:
        line = self._lines[self._row]
        line.extend([(" ", "")] * (self._column + 1 - len(line)))
        line[self._column] = (character, self._style)
        self._column += 1

    def lines(self) -> Iterator[str]:
        """The lines, with the codes of their colours, without empty ones at the end."""
        last = max((i for i, line in enumerate(self._lines) if line), default=-1)
        for line in self._lines[: last + 1]:
            runs = groupby(line, key=lambda cell: cell[1])
            texts = ((style, "".join(char for char, _ in cells)) for style, cells in runs)
            yield "".join(f"{style}{text}\x1b[0m" if style else text for style, text in texts)


def drawn(lines: Sequence[str]) -> str:
    """The SVG picture of a screen's lines."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for line in lines:
            console.print(Text.from_ansi(line), soft_wrap=False)
        return console.export_svg(
            title="weightyard", code_format=_SVG, theme=MONOKAI, unique_id="terminal"
        )


def run(command: str, directory: Path, screen: Screen) -> None:
    """Runs a shell command in `directory` on a terminal of its own. Raises CalledProcessError."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = os.environ | {
        "HOME": str(directory), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    screen.feed(f"\x1b[32m$\x1b[0m \x1b[1m{command}\x1b[0m\r\n".replace("\n    ", "\r\n    "))
    with subprocess.Popen(
        ["bash", "-c", command], cwd=directory, env=environment,
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            for text in _written(terminal, process, directory):
                screen.feed(text)
    if process.returncode:
        print("\n".join(screen.lines()), file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)
    screen.feed("\r\n")


def _written(
    terminal: IO[bytes], process: subprocess.Popen[bytes], directory: Path
) -> Iterator[str]:
    """What a process writes, in whole lines, until it ends: its servers may keep the terminal open."""
    written = b""
    while True:
        ended = process.poll() is not None
        ready, _, _ = select.select([terminal], [], [], 0.1)
        part = b""
        if ready:
            with suppress(OSError):  # EIO: nobody has the terminal open any more
                part = terminal.read(65536)
        # whole lines, so that no escape sequence and no character is cut
        whole, newline, written = (written + part).rpartition(b"\n")
        yield _shortened(whole + newline, directory)
        if ended and not part:
            break
    yield _shortened(written, directory)


def _shortened(written: bytes, directory: Path) -> str:
    return written.decode(errors="replace").replace(str(directory), "~")


def main() -> int:
    """Runs the commands and writes the picture."""
    from weightyard.demo.smollm import default_cache, smollm2_checkpoint  # noqa: PLC0415

    checkpoint = smollm2_checkpoint(default_cache(os.environ))
    screen = Screen()
    with tempfile.TemporaryDirectory(prefix="weightyard-") as temporary:
        directory = Path(temporary)
        (directory / checkpoint.name).symlink_to(checkpoint)
        (directory / "workspace.yaml").write_text(WORKSPACE)
        try:
            for command in COMMANDS:
                print(command, file=sys.stderr)
                run(command, directory, screen)
        finally:
            with suppress(subprocess.CalledProcessError):
                run("weightyard down --all", directory, Screen())
        PICTURE.write_text(drawn(list(screen.lines())))
    print(f"{PICTURE.relative_to(REPOSITORY)}: {PICTURE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
