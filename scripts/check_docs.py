"""Checks Markdown files: relative links and anchors must resolve, and named `make` targets must exist.

Prints one line per mistake, FILE:LINE first, and exits with 1 when there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LINK = re.compile(r"!?\[[^]]*]\(\s*<?([^)\s>]+)>?[^)]*\)")
_FENCE = re.compile(r"^\s*(```|~~~)")
_HEADING = re.compile(r"^#+\s+(.*?)\s*#*$")
_MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")
_CODE = re.compile(r"`([^`]+)`")
_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """A line of a Markdown file; `code` when it is in a fenced block."""

    number: int
    text: str
    code: bool


def lines_of(text: str) -> Iterator[Line]:
    """The lines of a Markdown text, without the fences themselves."""
    in_fence = False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            in_fence = not in_fence
        else:
            yield Line(number, line, in_fence)


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub generates for a text's headings."""
    headings = (_HEADING.match(line.text) for line in lines_of(text) if not line.code)
    kept = (re.sub(r"[^\w\- ]", "", match[1].lower()) for match in headings if match)
    return {heading.replace(" ", "-") for heading in kept}


def broken_links(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Relative links of `path` without an existing file or heading."""
    for line in lines_of(text):
        if line.code:
            continue
        for target in _LINK.findall(_CODE.sub("", line.text)):
            file, _, anchor = target.partition("#")
            if re.match(r"[a-z][a-z+.-]*:", target):
                continue
            linked = path.parent / file if file else path
            if not linked.exists():
                yield line.number, f"link to a missing file: {target}"
            elif anchor and linked.suffix == ".md" and anchor not in anchors_of(linked.read_text()):
                yield line.number, f"link to a missing heading: {target}"


def unknown_targets(text: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """`make` targets named in code that the Makefile doesn't have."""
    for line in lines_of(text):
        for code in [line.text] if line.code else _CODE.findall(line.text):
            for target in set(_MAKE.findall(code)) - known:
                yield line.number, f"no such make target: {target}"


def main() -> int:
    """Checks every Markdown file that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
        check=True,
        capture_output=True,
        text=True,
    )
    targets = set(_TARGET.findall(Path("Makefile").read_text()))
    mistakes = 0
    for path in filter(Path.exists, map(Path, sorted(listed.stdout.split()))):
        text = path.read_text()
        for number, mistake in sorted([*broken_links(path, text), *unknown_targets(text, targets)]):
            print(f"{path}:{number}: {mistake}")
            mistakes += 1
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
