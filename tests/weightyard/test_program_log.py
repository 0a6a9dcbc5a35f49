"""The log of a long-running command: levels, and lines that programs can read."""

from __future__ import annotations

import ast
import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cache_agent.observability.log_lines import NOTES
from modelimage import spans
from tests.servers.otlp import Collector
from weightyard.program_log import configure_log, log_options
from workspace.controller.process.log_events import EVENTS, about

ROOT = Path(__file__).parents[2]
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
    assert first == {
        "level": "info", "event": "library", "message": "3 models", "logger": "somewhere",
    }  # fmt: skip
    assert (second["level"], second["message"]) == ("error", "failed")
    assert "ValueError: invalid literal" in second["error"]


def test_a_line_has_its_events_name_the_ids_and_the_trace() -> None:
    stream = io.StringIO()
    configure_log("info", "json", stream=stream)
    with Collector() as collector:
        with (
            collector.named() as environ,
            spans.exporting(environ, service="test"),
            spans.span("pass"),
        ):
            logger.info("applied", extra=about("object applied", workspace="team/chat"))
        (span,) = collector.spans
    line = json.loads(stream.getvalue())
    assert (line["event"], line["workspace"]) == ("object applied", "team/chat")
    assert line["trace"] == span.trace_id.hex()


ODD = [
    "two\nlines",
    "\x1b[2J\x1b]0;title\x07",
    "\u2028\u202e",
    "half \ud800",
    "\x00",
    "x" * 1_000_000,
]


def fail(said: str) -> None:
    raise ValueError(said)


@pytest.mark.parametrize("said", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("form", ["json", "text"])
def test_what_others_say_stays_on_its_line(said: str, form: str, tmp_path: Path) -> None:
    """Written to a file as to a pipe: with an encoding, which not every text has."""
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        configure_log("info", form, stream=stream)
        logger.warning("a server says: %s", said)
        try:
            fail(said)
        except ValueError:
            logger.exception("it failed")
    text = path.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
    lines = text.split("\n")
    assert lines.pop() == ""
    if form == "json":
        first, second = map(json.loads, lines)
        assert first["message"].startswith("a server says: ")
        assert "ValueError" in second["error"]
    else:
        assert "a server says" in lines[0]
        assert "it failed" in lines[1], "nobody's text begins a line of the log"


def calls_in(folder: str, methods: set[str]) -> Iterator[tuple[str, ast.Call]]:
    """The calls of these methods in a folder's modules."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in methods:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_line_of_the_controller_names_an_event_of_the_table() -> None:
    named = set()
    for folder in ("workspace", "weightyard/commands"):
        for where, call in calls_in(folder, {"info", "warning", "error", "exception"}):
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            if getattr(owner, "id", getattr(owner, "attr", "")).strip("_") != "logger":
                continue
            given = next((each.value for each in call.keywords if each.arg == "extra"), None)
            assert isinstance(given, ast.Call), f"{where} names no event"
            assert isinstance(given.args[0], ast.Constant), where
            named.add(given.args[0].value)
    assert named == set(EVENTS)


def test_every_note_of_the_agent_is_in_its_table() -> None:
    named = {"library"}
    for where, call in calls_in("cache_agent", {"note"}):
        first = call.args[0] if call.args else None
        # Others' `note` take a peer, a scope or a number.
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            named.add(first.value)
        assert not isinstance(first, ast.JoinedStr) or "gate" in ast.dump(call.func), where
    assert named == set(NOTES)


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
