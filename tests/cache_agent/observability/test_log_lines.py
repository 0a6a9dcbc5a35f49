"""The agent's log: every line is one JSON object, whoever writes it."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

from cache_agent.observability.events import (
    EvictionReason,
    FileScrubbed,
    ModelEvicted,
    PullEnded,
)
from cache_agent.observability.log_lines import JsonLog


def test_libraries_warnings_are_lines_of_the_log_like_any() -> None:
    out = io.StringIO()
    log = JsonLog(out, clock=lambda: "now")
    handler = log.adopt_libraries()
    library = logging.getLogger("some.library")
    try:
        library.info("not this")
        library.warning("retrying in %d s", 3)
        try:
            Path("/no/such/file").stat()
        except OSError:
            library.exception("it failed")
    finally:
        logging.getLogger().removeHandler(handler)
    log.emit(PullEnded("reg.test/m:v1", "done", 1.0, 0, ()))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["library", "library", "pull ended"]
    assert lines[0]["message"] == "retrying in 3 s"
    assert lines[1]["level"] == "error"
    assert lines[2]["trace"] == "", "it belongs to none"
    assert "No such file" in lines[1]["error"]
    assert all(line["timestamp"] == "now" for line in lines)


def test_an_event_is_a_line_with_its_documented_fields() -> None:
    out = io.StringIO()
    log = JsonLog(out, clock=lambda: "now")
    log.emit(
        PullEnded(
            "m", "NoSpace", 1.23456, 7, [("hub", "hf.co", 5)], "full", [("resolving", 0.0)],
            trace=f"00-{'4b' * 16}-{'f0' * 8}-01",
        )
    )  # fmt: skip
    log.emit(ModelEvicted("m", 300, EvictionReason.GC, "used 2 times"))
    log.emit(FileScrubbed(5))
    ended, evicted = (json.loads(line) for line in out.getvalue().splitlines())
    assert ended == {
        "event": "pull ended", "level": "warning", "timestamp": "now", "image": "m", "outcome": "NoSpace",
        "seconds": 1.235, "reused": 7, "fetched": {"hub hf.co": 5}, "message": "full",
        "trace": "4b" * 16,
    }  # fmt: skip
    assert (evicted["event"], evicted["freed"], evicted["reason"], evicted["detail"]) == (
        "model evicted", 300, "gc", "used 2 times",
    )  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


HOSTILE = 'reg.test/m\n{"event": "forged"}\x1b[2J\ud800'


def test_on_a_terminal_a_line_is_for_people() -> None:
    out = Terminal()
    log = JsonLog(out, clock=lambda: "now")
    log.emit(ModelEvicted(HOSTILE, 300, EvictionReason.GC))
    log.note("stopped")
    first, second = out.getvalue().splitlines()
    assert first == (
        'now INFO model evicted: image=reg.test/m\\n{"event": "forged"}\\x1b[2J\\ud800 freed=300 reason=gc'
    )
    assert second == "now INFO stopped"


def test_nobodys_name_begins_a_line_or_fills_the_disk() -> None:
    out = io.StringIO()
    log = JsonLog(out, clock=lambda: "now")
    log.emit(ModelEvicted(HOSTILE, 300, EvictionReason.GC))
    log.emit(ModelEvicted("x" * 1_000_000, 300, EvictionReason.GC))
    first, second = out.getvalue().splitlines()
    assert first.isascii()
    assert json.loads(first)["image"] == HOSTILE
    assert len(second) < 20_000
    assert "characters" in json.loads(second)["image"]
