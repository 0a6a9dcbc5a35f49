"""The log of a long-running command that logs with `logging`: its level, and text or JSON lines on standard error.

The agent writes its own log, from its node's events; JSON lines here have the same first fields.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TextIO, TypeVar

import click

R = TypeVar("R")

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("json", "text")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `timestamp` (ISO 8601, UTC), `level`, `event`, `logger`, and `error`, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


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
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
