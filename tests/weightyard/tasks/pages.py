"""The task pages as data: their surroundings, and the commands that a test runs.

A page names what has to be there in a comment, `<!-- surroundings: registry, keys -->`. Its ```bash blocks are one
script, run from top to bottom in one shell; blocks of other languages run nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PAGES = tuple(sorted((REPOSITORY / "docs" / "tasks").glob("*.md")))
_SURROUNDINGS = re.compile(r"^<!-- surroundings: ([a-z, -]+) -->$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A task page: what must be there, and the script of its commands."""

    surroundings: frozenset[str]
    script: str


def read_page(text: str) -> Page:
    """Raises ValueError for a page without surroundings or commands, or with commands that wouldn't be run."""
    named = _SURROUNDINGS.search(text)
    if named is None:
        raise ValueError("the page doesn't state its surroundings")
    unrun = list(_not_run(text))
    if unrun:
        raise ValueError(f"commands that no test would run: {unrun}")
    blocks = [body for language, body in _BLOCK.findall(text) if language == "bash"]
    if not blocks:
        raise ValueError("the page has no commands")
    return Page(frozenset(named[1].split(", ")), "".join(blocks))


def _not_run(text: str) -> Iterator[str]:
    """Lines that look like commands to type, outside of what is run: indented blocks, blocks of other languages."""
    for language, body in _BLOCK.findall(text):
        if language not in ("bash", "yaml", "text"):
            yield body
    yield from re.findall(r"^(?: {4}|\t)\S.*$", _BLOCK.sub("", text), re.MULTILINE)


def placed(text: str, names: Mapping[str, str]) -> str:
    """A text with the pages' names of hosts and ports replaced by those of this run."""
    for name, here in names.items():
        text = text.replace(name, here)
    return text
