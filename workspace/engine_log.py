"""What an inference server's log tells of its start: when stages ended, and what it does now. Lines in, times out.

A server belongs to a tenant, who writes what he likes: only the times of lines and the names of stages leave here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from workspace.startup import StageName


@dataclass(frozen=True, slots=True)
class LogPattern:
    """A kind of line. `shown` says what the server does from it on; `ends` is the stage that it ends.

    `last`: of several such lines the last counts, as where each rank of a server logs its own.
    """

    pattern: re.Pattern[str]
    shown: str
    ends: StageName | None = None
    last: bool = False


def _row(
    pattern: str, shown: str, ends: StageName | None = None, *, last: bool = False
) -> LogPattern:
    return LogPattern(re.compile(pattern), shown, ends, last)


# The first matching pattern counts. Messages of vLLM 0.6 to 0.32; a test reads the installed vLLM's source. Repetitions
# are bounded: unbounded ones can take a time that grows with the square of a line's length.
VLLM: Final = (
    _row(r"Loading safetensors checkpoint shards:\s{1,8}(\d{1,3})%", "loading weights, {0}%"),
    _row(r"Capturing CUDA graph\D{0,100}(\d{1,3})%", "capturing CUDA graphs, {0}%"),
    _row(r"Starting to load model", "loading weights", StageName.ENGINE),
    _row(
        r"Loading weights took|Loading model weights took|Model loading took",
        "preparing the KV cache", StageName.WEIGHTS, last=True,
    ),
    _row(
        r"Dynamo bytecode transform|Compiling a graph|torch\.compile takes|torch\.compile took",
        "compiling", StageName.COMPILE, last=True,
    ),
    _row(
        r"Initializing a V1 LLM engine|Initializing an LLM engine", "starting the engine", StageName.PROCESS
    ),
    _row(
        r"non-default args|vLLM API server version", "reading the model's configuration", StageName.PROCESS
    ),
    _row(r"init engine .{0,200} took", "starting the HTTP server", StageName.WARM_UP, last=True),
    _row(r"Starting vLLM (API )?server", "starting the HTTP server"),
)  # fmt: skip
# What follows is no start any more: a running server compiles and loads too.
_OVER: Final = re.compile(r"Starting vLLM (API )?server|Application startup complete")
# Characters of a line that are read; vLLM's own messages are at its beginning.
_LONGEST_LINE: Final = 1000
_STAMPED: Final = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) ")


def stage_of(line: str) -> str | None:
    """What a server does from a log line on; None for most lines."""
    row, match = _match(line[:_LONGEST_LINE])
    return None if row is None or match is None else row.shown.format(*match.groups())


@dataclass(slots=True)
class EngineLog:
    """Collects the ends of stages from lines in their order. `ends` are on the clock of the lines' times."""

    ends: dict[StageName, float] = field(default_factory=dict)
    is_over: bool = False

    def read(self, at: float, line: str) -> None:
        """Take a line that was written at a time, in seconds."""
        if self.is_over:
            return
        line = line[:_LONGEST_LINE]
        row, _ = _match(line)
        if row is not None and row.ends is not None and (row.last or row.ends not in self.ends):
            self.ends[row.ends] = at
        self.is_over = _OVER.search(line) is not None


def stamped_lines(text: str) -> Iterator[tuple[float, str]]:
    """The lines of a log as an API server gives it with `timestamps`, each with its time since the epoch."""
    # Not `splitlines`: a tenant's line may hold a form feed and then a time of its own.
    for line in text.split("\n"):
        match = _STAMPED.match(line)
        with suppress(ValueError):
            if match is not None:
                at = datetime.fromisoformat(match[1]).timestamp()
                yield at, line[match.end() :]


def read_log(lines: Iterable[tuple[float, str]]) -> EngineLog:
    """What some lines, in their order, tell."""
    log = EngineLog()
    for at, line in lines:
        log.read(at, line)
    return log


def _match(line: str) -> tuple[LogPattern | None, re.Match[str] | None]:
    for row in VLLM:
        if match := row.pattern.search(line):
            return row, match
    return None, None
