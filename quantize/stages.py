"""Stages of work that takes minutes without moving bytes: loading, calibrating, comparing.

A worker process tells its stages by appending lines of JSON to a file, since libraries write to its outputs as they
like and its descendants may outlive it. Whoever runs the worker reads that file, and tells the last stage again at each
look, so that the display can show that time passes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FILE: Final = "stages.jsonl"
_MAX_NAME: Final = 80


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: `done` of `total` steps, of whatever kind; `total` 0 where there are none to count."""

    name: str
    done: int = 0
    total: int = 0


OnStage = Callable[[Stage], None]


def ignore_stage(_: Stage) -> None:
    """An OnStage that tells nobody."""


def stage_writer(path: Path | None) -> OnStage:
    """An OnStage that appends to a worker's file; None tells nobody."""
    if path is None:
        return ignore_stage

    def write(stage: Stage) -> None:
        # Opened for each line: the reader sees it at once, and a worker that dies loses none.
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([stage.name, stage.done, stage.total]) + "\n")

    return write


class StageReader:
    """Reads what a worker appended. `latest` is its newest stage, or `first` as long as it told none."""

    def __init__(self, path: Path, first: Stage) -> None:
        self._path = path
        self._read = 0
        self.latest = first

    def look(self) -> Stage:
        """Reads the whole lines that are new, and returns the newest stage. Other lines are ignored."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return self.latest
        # The worker may be in the middle of a line: the rest is read next time.
        whole, newline, _ = new.rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            self.latest = _parsed(line) or self.latest
        return self.latest


def _parsed(line: bytes) -> Stage | None:
    try:
        document: Any = json.loads(line)
        name, done, total = str(document[0])[:_MAX_NAME], int(document[1]), int(document[2])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError):
        return None
    return Stage(name, max(0, min(done, total)), max(0, total))
