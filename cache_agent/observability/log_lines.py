"""The agent's log: one JSON object per line, made from the node's events; on a terminal, a line for people."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from cache_agent.observability.events import (
    DesiredModelFailed,
    Event,
    Events,
    FileDamaged,
    FileRepaired,
    HubImageIgnored,
    LeaseExpired,
    MaintenanceFailed,
    ManifestsNotCached,
    ModelEvicted,
    PeerEjected,
    PullEnded,
    PullStarted,
    ReservationRefused,
)
from modelimage.log_text import printable, shortened
from modelimage.trace_headers import trace_id

Level = Literal["info", "warning", "error"]


# Lines that aren't made from a node's event, by name: what each means.
NOTES: Final[Mapping[str, str]] = {
    "recovered": "The store was put in order after a crash.",
    "root left out": "A root can't be used; the others are.",
    "settings reloaded": "SIGHUP: the settings were read again.",
    "settings kept": "SIGHUP: the new settings can't be used; the old ones stay.",
    "stopped": "The agent ended.",
    "desired model held": "A desired model is held as desired.",
    "desired model document rejected": "A document of the desired state can't be used.",
    "report not written": "This node's NodeCache could not be written; it is tried again.",
    "heartbeat not written": "This node's Lease could not be renewed; it is tried again.",
    "event not written": "A Kubernetes Event of a pod could not be written.",
    "store not readable": "The store could not be read for the plan of desired models.",
    "store not changed": "A change for the desired state failed.",
    "library": "A library's warning or error.",
}


@dataclass(frozen=True, slots=True)
class LogLine:
    """How an event is logged: the line's `event`, its level, and its further fields in order."""

    text: str
    level: Level
    names: tuple[str, ...]

    def level_of(self, event: Event) -> Level:
        """The level of one event's line: that of a pull depends on how it ended."""
        failed = isinstance(event, PullEnded) and event.outcome != "done"
        return "warning" if failed else self.level

    def fields(self, event: Event) -> dict[str, object]:
        """The line's fields, by name."""
        return {name: _DERIVED.get(name, getattr)(event, name) for name in self.names}


# Events that are frequent and only counted, such as each scrubbed file, have no line.
LINES: Final[Mapping[type[Event], LogLine]] = {
    PullStarted: LogLine("pull started", "info", ("image",)),
    PullEnded: LogLine(
        "pull ended",
        "info",
        ("image", "outcome", "seconds", "reused", "fetched", "message", "trace"),
    ),
    DesiredModelFailed: LogLine("desired model failed", "warning", ("name", "reason", "message")),
    ModelEvicted: LogLine("model evicted", "info", ("image", "freed", "reason", "detail")),
    ReservationRefused: LogLine("reservation refused", "warning", ("need",)),
    FileDamaged: LogLine("file damaged", "error", ("file", "detail")),
    FileRepaired: LogLine("file repaired", "info", ("file", "chunks")),
    LeaseExpired: LogLine("lease expired", "info", ("lease", "holder")),
    MaintenanceFailed: LogLine("maintenance failed", "warning", ("detail",)),
    ManifestsNotCached: LogLine("manifests not cached", "warning", ("image", "detail")),
    HubImageIgnored: LogLine(
        "image doesn't stand in for the Hub", "warning", ("repo", "image", "detail")
    ),
    PeerEjected: LogLine("peer ejected", "warning", ("peer", "reason")),
}


def _seconds(event: PullEnded, _: str) -> float:
    return round(event.seconds, 3)


def _fetched(event: PullEnded, _: str) -> dict[str, int]:
    return {f"{tier} {name}": size for tier, name, size in event.by_source}


def _trace_id(event: PullEnded, _: str) -> str:
    """The trace to which the pull belongs, as collectors name it; empty for none."""
    return trace_id(event.trace)


# Fields that aren't the event's own attributes as they are.
_DERIVED: Final[Mapping[str, Callable[[Any, str], object]]] = {
    "seconds": _seconds,
    "fetched": _fetched,
    "trace": _trace_id,
}


class JsonLog(Events):
    """Writes an event of `LINES` as a line. `clock` returns ISO 8601 times. Thread-safe."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], str] | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._on_terminal = self._stream.isatty()
        self._clock = clock or _now
        # A line is written as a whole: those of many threads would mix.
        self._lock = threading.Lock()

    def note(self, event: str, **fields: object) -> None:
        """Write a line about something that isn't a node event, such as start, stop or recovery."""
        self.write("info", event, fields)

    def adopt_libraries(self) -> logging.Handler:
        """Write warnings and errors that libraries send to `logging` into this log; return the handler, to remove."""
        handler = _Adopting(self)
        logging.getLogger().addHandler(handler)
        return handler

    def emit(self, event: Event) -> None:
        line = LINES.get(type(event))
        if line is not None:
            self.write(line.level_of(event), line.text, line.fields(event))

    def write(self, level: Level, event: str, fields: Mapping[str, object]) -> None:
        """Write one line. Values that JSON doesn't have are written as Python shows them; long texts are shortened."""
        bounded = {
            name: shortened(value) if isinstance(value, str) else value
            for name, value in fields.items()
        }
        line = {**bounded, "event": event, "level": level, "timestamp": self._clock()}
        text = _for_people(line) if self._on_terminal else json.dumps(line, default=repr)
        with self._lock:
            print(text, file=self._stream, flush=True)


class _Adopting(logging.Handler):
    """Passes on `logging` records of level WARNING and above."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"message": record.getMessage(), "logger": record.name}
        failed = record.levelno >= logging.ERROR
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])
            # An error that nobody expected is found by where it came from.
            if failed:
                fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        self._log.write("error" if failed else "warning", "library", fields)


def _for_people(line: Mapping[str, object]) -> str:
    """`TIME LEVEL event: name=value …`, without what is empty."""
    rest = [
        f"{name}={printable(str(value))}"
        for name, value in line.items()
        if name not in ("event", "level", "timestamp") and value not in ("", (), {}, None)
    ]
    head = f"{line['timestamp']} {str(line['level']).upper()} {line['event']}"
    return f"{head}: {' '.join(rest)}" if rest else head


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
