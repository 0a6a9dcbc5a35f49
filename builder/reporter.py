"""The interface for a build's progress reports. Independent of terminals: the command line implements it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Advance(Protocol):
    """Progress of one stage; all methods may be called from any thread."""

    def advance(self, count: int) -> None:
        """Report `count` more bytes as done."""

    def resume(self, count: int) -> None:
        """Report `count` bytes as done earlier."""

    def describe(self, text: str) -> None:
        """Describe the current work in a few words."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Report `done` of `total` steps of work that moves no bytes; `total` 0 where none can be counted.

        To be called again while nothing changes, so that the passing of time is shown.
        """

    def part(self, name: str, size: int) -> AbstractContextManager[Callable[[int], None]]:
        """A context for one blob: the callback it yields takes byte counts, which also count for the stage."""


class Silent:
    """An Advance that reports nothing."""

    def advance(self, count: int) -> None:
        """Do nothing."""

    def resume(self, count: int) -> None:
        """Do nothing."""

    def describe(self, text: str) -> None:
        """Do nothing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Do nothing."""

    def part(self, name: str, size: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(self.advance)


class Reporter(Protocol):
    """Reports stages with their size in bytes, events for machines, messages for people."""

    def progress(
        self, title: str, total_bytes: int | None = None
    ) -> AbstractContextManager[Advance]: ...

    def event(self, name: str, **fields: Any) -> None: ...

    def say(self, text: str) -> None: ...
