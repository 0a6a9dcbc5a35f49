"""Parses an inference server's log: its current stage, and the cause of its death. Lines in, text out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

# The first matching pattern determines the stage. Messages of vLLM 0.6 to 0.32.
_STAGES: Final = tuple(
    (re.compile(pattern), stage)
    for pattern, stage in (
        (r"Loading safetensors checkpoint shards:\s+(\d+)%", "loading weights, {0}%"),
        (r"Capturing CUDA graph\S*[^\d]*(\d+)%", "capturing CUDA graphs, {0}%"),
        (r"Starting to load model", "loading weights"),
        (
            r"Loading weights took|Loading model weights took|Model loading took",
            "preparing the KV cache",
        ),
        (r"Dynamo bytecode transform|Compiling a graph|torch\.compile takes", "compiling"),
        (r"Initializing a V1 LLM engine|Initializing an LLM engine", "starting the engine"),
        (r"non-default args|vLLM API server version", "reading the model's configuration"),
        (r"init engine .* took", "starting the HTTP server"),
        (r"Starting vLLM (API )?server", "starting the HTTP server"),
    )
)
BOOTING: Final = "importing vLLM"
_PREFIX = re.compile(r"^\(\S+( pid=\d+)?\)\s+")
_LOGGED = re.compile(r"^(ERROR|WARNING|INFO|DEBUG)\s+\d\d-\d\d \d\d:\d\d:\d\d (\[[^\]]+\])?\s*")
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt): .+")
# Raised only as a consequence of an earlier exception.
_ECHOES: Final = (
    "Engine core initialization failed",
    "EngineCore encountered an issue",
    "cancelled",
)


def stage_of(line: str) -> str | None:
    """The stage that a log line announces; None for most lines."""
    for pattern, stage in _STAGES:
        if match := pattern.search(line):
            return stage.format(*match.groups())
    return None


def plain(line: str) -> str:
    """A log line without process name, level and time."""
    return _LOGGED.sub("", _PREFIX.sub("", line)).rstrip()


def cause(lines: Sequence[str]) -> str | None:
    """The exception that ended a server: the first one that isn't a consequence of another."""
    raised = [text for line in lines if _RAISED.match(text := plain(line))]
    first = [text for text in raised if not any(echo in text for echo in _ECHOES)]
    return next(iter(first or raised), None)


def last_words(lines: Sequence[str], count: int) -> list[str]:
    """The last lines with content, without their prefixes."""
    said = [text for line in lines if (text := plain(line)).strip(" ^~")]
    return said[-count:]
