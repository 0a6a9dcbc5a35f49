"""The log of a long-running command: levels, and lines that programs can read."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime

import click
import pytest
from click.testing import CliRunner

from weightyard.program_log import configure_log, log_options

logger = logging.getLogger("somewhere")


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """The root logger is the process's: it is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)


def test_json_lines_have_the_fields_of_the_agents_log() -> None:
    stream = io.StringIO()
    configure_log("info", "json", stream=stream)
    logger.info("%s models", 3)
    logger.debug("not logged")
    try:
        int("two\nlines")
    except ValueError:
        logger.exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert datetime.fromisoformat(first.pop("timestamp")).utcoffset() is not None
    assert first == {"level": "info", "event": "3 models", "logger": "somewhere"}
    assert (second["level"], second["event"]) == ("error", "failed")
    assert "ValueError: invalid literal" in second["error"]


@pytest.mark.parametrize(("level", "expected"), [("debug", 4), ("warning", 2), ("error", 1)])
def test_less_severe_messages_are_left_out(level: str, expected: int) -> None:
    stream = io.StringIO()
    configure_log(level, "text", stream=stream)
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(each, "said")
    assert len(stream.getvalue().splitlines()) == expected


def test_options_have_defaults_for_people() -> None:
    @click.command()
    @log_options
    def command(log_level: str, log_format: str) -> None:
        click.echo(f"{log_level} {log_format}")

    assert CliRunner().invoke(command, []).output == "info text\n"
    assert CliRunner().invoke(command, ["--log-level", "loud"]).exit_code == 2
