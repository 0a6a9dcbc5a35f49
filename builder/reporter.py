"""What a build tells of itself while it works. Knows nothing of terminals: the command line implements this."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Advance(Protocol):
    """Progress of one stage; all methods may be called from any thread."""

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""

    def resume(self, count: int) -> None:
        """`count` bytes were there already."""

    def describe(self, text: str) -> None:
        """What is being done now, in a few words."""

    def part(self, name: str, size: int) -> AbstractContextManager[Callable[[int], None]]:
        """A blob under way: what it gives takes byte counts, which count for the stage too."""


class Silent:
    """Progress that nobody watches."""

    def advance(self, count: int) -> None:
        """Nobody asked."""

    def resume(self, count: int) -> None:
        """Nobody asked."""

    def describe(self, text: str) -> None:
        """Nobody asked."""

    def part(self, name: str, size: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(self.advance)


class Reporter(Protocol):
    """Stages with their size in bytes, events for machines, notes for people."""

    def progress(
        self, title: str, total_bytes: int | None = None
    ) -> AbstractContextManager[Advance]: ...

    def event(self, name: str, **fields: Any) -> None: ...

    def say(self, text: str) -> None: ...
