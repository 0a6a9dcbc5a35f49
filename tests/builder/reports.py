"""A Reporter for tests: remembers what it was told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


class Told:
    """Adds up the bytes of each stage."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, count: int) -> None:
        self.done += count

    def resume(self, count: int) -> None:
        self.done += count

    def describe(self, text: str) -> None:
        """Nothing to remember."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Nothing to remember."""

    def part(self, name: str, size: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(self.advance)


class Remembering:
    """Stages in order with their totals and what was done, events, and notes."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None, Told]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.notes: list[str] = []

    @contextmanager
    def progress(self, title: str, total_bytes: int | None = None) -> Iterator[Told]:
        told = Told()
        self.stages.append((title, total_bytes, told))
        yield told

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def say(self, text: str) -> None:
        self.notes.append(text)
