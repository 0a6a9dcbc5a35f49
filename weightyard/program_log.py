"""The log of a long-running command that logs with `logging`: its level, and text or JSON lines on standard error.

The agent writes its own log, from its node's events; JSON lines here have the same first fields.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TextIO, TypeVar

import click

from modelimage.log_text import printable, shortened
from modelimage.spans import traceparent
from modelimage.trace_headers import trace_id

R = TypeVar("R")

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("json", "text")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `timestamp` (ISO 8601, UTC), `level`, `event`, `message`, and what there is of more.

    `event` is the stable name that the call gave, or `library`; beside it are the call's ids, `logger`, `trace`, the id
    of the trace that the work is part of, and `error`, a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "event": getattr(record, "event_name", "library"),
            "message": shortened(record.getMessage()),
            **getattr(record, "event_ids", {}),
            "logger": record.name,
        }
        trace = trace_id(traceparent())
        if trace:
            line["trace"] = trace
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = shortened(self.formatException(record.exc_info))
        # ASCII: half a surrogate in somebody's text must not cost the line.
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """A line for people. What others said stays on it, and can't steer the terminal; tracebacks have their lines."""

    def format(self, record: logging.LogRecord) -> str:
        said = printable(shortened(record.getMessage()))
        # The text that another handler kept has the error's words as they came.
        return super().format(
            logging.makeLogRecord({**vars(record), "msg": said, "args": (), "exc_text": None})
        )

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the base class's name
        return "\n".join(map(printable, shortened(super().formatException(ei)).split("\n")))


def log_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds `--log-level` and `--log-format`, passed as the keywords `log_level` and `log_format`."""
    level = click.option(
        "--log-level", type=click.Choice(LEVELS), envvar="WEIGHTYARD_LOG_LEVEL", show_envvar=True,
        default="info", show_default=True, help="Least severe messages to log.",
    )  # fmt: skip
    form = click.option(
        "--log-format", type=click.Choice(FORMATS), envvar="WEIGHTYARD_LOG_FORMAT", show_envvar=True,
        default="text", show_default=True, help="Log JSON objects, one per line, or text.",
    )  # fmt: skip
    return level(form(command))


def configure_log(level: str, form: str, *, stream: TextIO | None = None) -> None:
    """Sends every message of this level and above to `stream`, standard error by default; replaces earlier settings.

    `level` is one of `LEVELS`, `form` one of `FORMATS`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
