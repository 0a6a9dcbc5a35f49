"""The interface for a build's progress reports. Independent of terminals: the command line implements it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Progress(Protocol):
    """One job's progress. Its methods may be called from any thread."""

    def advance(self, count: int) -> None:
        """Adds `count` finished bytes."""

    def resume(self, count: int) -> None:
        """Adds `count` bytes that existed before the job: done, but not part of the rate."""

    def describe(self, text: str) -> None:
        """Sets a short text about the current step."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Shows `done` of `total` steps of work that moves no bytes, with the time left; `total` 0: no steps to count.

        Called again and again while nothing changes, it shows that time passes.
        """

    def part(self, name: str, size: int) -> AbstractContextManager[Callable[[int], None]]:
        """Shows the transfer of one blob of `size` bytes beside the total.

        Yields a function that takes byte counts; they are added to the total too.
        """


class Silent:
    """Progress that is shown nowhere."""

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
    ) -> AbstractContextManager[Progress]: ...

    def event(self, name: str, **fields: Any) -> None: ...

    def say(self, text: str) -> None: ...
