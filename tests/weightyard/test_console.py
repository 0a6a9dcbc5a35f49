"""What commands write, and the arithmetic and pace of progress."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.servers.process import wait_until
from weightyard.console import Console, format_table
from weightyard.progress import Meter
from weightyard.text import format_bytes, format_duration, one_line, plural, printable

HOSTILE = "a\x1b]0;title\x07\x9b31m\u202e\ud800\rb"


class FakeTerminal(StringIO):
    """A stream that says a person watches it."""

    def isatty(self) -> bool:
        return True


class ManualClock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def consoles(*, err: StringIO | None = None) -> tuple[Console, StringIO, StringIO, ManualClock]:
    out, clock = StringIO(), ManualClock()
    err = err or StringIO()
    return Console(out=out, err=err, clock=clock), out, err, clock


def test_result_goes_to_stdout_and_notes_to_stderr() -> None:
    console, out, err, _ = consoles()
    console.say("working")
    console.event("ignored without --json")
    console.result({"a": 1}, "a is 1")
    assert (out.getvalue(), err.getvalue()) == ("a is 1\n", "working\n")


def test_json() -> None:
    console, out, err, _ = consoles()
    console.configure(json=True)
    console.say("working")
    console.event("blob", size=3)
    console.table(["name", "size"], [("é", None)], empty="none")
    assert json.loads(out.getvalue()) == [{"name": "é", "size": None}]
    assert [json.loads(line) for line in err.getvalue().splitlines()] == [
        {"event": "note", "text": "working"}, {"event": "blob", "size": 3},
    ]  # fmt: skip


def test_a_table_without_rows_is_a_sentence() -> None:
    console, out, _, _ = consoles()
    console.table(["name"], [], empty="nothing here")
    console.configure(json=True)
    console.table(["name"], [], empty="nothing here")
    console.table(["name"], [], empty="nothing here", document={"names": []})
    assert out.getvalue().splitlines() == ["nothing here", "[]", '{"names": []}']


def test_quiet_keeps_results_and_errors() -> None:
    console, out, err, clock = consoles()
    console.configure(quiet=True)
    console.say("working")
    with console.progress("job", 10) as progress:
        clock.now += 60
        progress.advance(10)
        progress.resume(1)
        progress.describe("x")
    console.result({}, "done")
    console.fail("bad")
    assert (out.getvalue(), err.getvalue()) == ("done\n", "error: bad\n")


def test_plain_progress_speaks_now_and_then() -> None:
    console, _, err, clock = consoles()
    with console.progress("pull", 4_000_000) as progress:
        for _ in range(12):
            clock.now += 1
            progress.advance(250_000)
        progress.describe("checking")
    assert err.getvalue().splitlines() == [
        "pull: 1.2 MB of 4.0 MB, 31%, 250 kB/s, 11.0 s left",
        "pull: 2.5 MB of 4.0 MB, 62%, 250 kB/s, 6.0 s left",
        "pull: checking, 3.0 MB of 4.0 MB, 75%, 275 kB/s, 3.6 s left",
        "pull: done in 12.0 s, 3.0 MB, 250 kB/s",
    ]


def test_a_stage_has_percent_and_the_time_that_is_left() -> None:
    """A line at its beginning, every few seconds while it moves, and at least every 30 s while it doesn't."""
    console, _, err, clock = consoles()
    with console.progress("quantizing int8") as progress:
        progress.advance(1000)
        progress.stage("loading", 0, 0)
        for done in range(4):
            for _ in range(5):
                clock.now += 2
                progress.stage("comparing", done, 4)
        for _ in range(60):
            clock.now += 1
            progress.stage("comparing", 3, 4)
    lines = err.getvalue().splitlines()
    assert lines[:3] == [
        "quantizing int8: loading, 0.0 s so far",
        "quantizing int8: comparing, 0%, 2.0 s so far",
        "quantizing int8: comparing, 25%, 30.0 s left, 12.0 s so far",
    ]
    assert lines[-1].startswith("quantizing int8: done in 1 min 40 s")
    still = [line for line in lines if "75%" in line]
    assert 60 / 30 <= len(still) <= 60 / 10


def test_a_stage_is_an_event_too() -> None:
    console, _, err, clock = consoles()
    console.configure(json=True)
    with console.progress("quantizing int8") as progress:
        for _ in range(4):
            clock.now += 1
            progress.stage("comparing", 2, 8)
        progress.describe("publishing")
    events = [json.loads(line) for line in err.getvalue().splitlines()]
    fields = ("text", "stage", "steps", "stepsTotal", "stageLeft")
    assert [tuple(event[each] for each in fields) for event in events[:2]] == [
        ("comparing, 25%", "comparing", 2, 8, 0.0),
        ("comparing, 25%, 3.0 s left", "comparing", 2, 8, 3.0),
    ]
    assert events[-2]["text"] == "publishing"
    assert "stage" not in events[-1]


def test_a_moving_bar_shows_the_stage() -> None:
    console, _, err, _ = consoles(err=FakeTerminal())
    with console.progress("quantizing int8") as progress:
        progress.stage("comparing", 1, 4)
        wait_until(lambda: "comparing, 25%" in err.getvalue(), what="a refresh of the bar")


def test_progress_that_fails_says_so() -> None:
    console, _, err, clock = consoles()

    def pull() -> None:
        with console.progress("pull") as progress:
            clock.now += 2
            progress.advance(1000)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pull()
    assert err.getvalue() == "pull: failed in 2.0 s, 1.0 kB, 500 B/s\n"


def test_what_was_there_has_no_rate() -> None:
    console, _, err, _ = consoles()
    with console.progress("pull", 1000) as progress:
        progress.resume(1000)
    assert err.getvalue() == "pull: done in 0.0 s, 1.0 kB, 1.0 kB of it there already\n"


def test_json_progress_is_an_event_a_second() -> None:
    console, _, err, clock = consoles()
    console.configure(json=True)
    with console.progress("pull", 100) as progress:
        for _ in range(30):
            clock.now += 0.1
            progress.advance(1)
    events = [json.loads(line) for line in err.getvalue().splitlines()]
    assert [event["state"] for event in events] == ["progress"] * (len(events) - 1) + ["done"]
    assert 3 <= len(events) <= 4
    assert events[-1] == {
        "event": "progress", "job": "pull", "blob": None, "state": "done", "text": None, "done": 30,
        "already": 0, "total": 100, "seconds": 3.0, "rate": 10, "left": 7.0,
    }  # fmt: skip


def test_json_progress_tells_of_each_blob_and_of_the_whole() -> None:
    console, _, err, clock = consoles()
    console.configure(json=True)
    with console.progress("push", 200) as progress:
        for name in ("aaa", "bbb"):
            with progress.part(name, 100) as advance:
                for _ in range(10):
                    clock.now += 0.2
                    advance(10)
    events = [json.loads(line) for line in err.getvalue().splitlines()]
    ends = {event["blob"]: event["done"] for event in events if event["state"] == "done"}
    assert ends == {"aaa": 100, "bbb": 100, None: 200}
    under_way = [event for event in events if event["state"] == "progress"]
    assert {event["blob"] for event in under_way} == {"aaa", "bbb", None}
    assert all(event["left"] is not None for event in under_way)


def test_people_see_a_bar_for_each_blob_only_while_it_is_under_way() -> None:
    console, _, err, _ = consoles(err=FakeTerminal())
    with console.progress("push", 100) as progress, progress.part("a1b2c3", 100) as advance:
        advance(100)
    assert "a1b2c3" in err.getvalue()
    console, _, err, _ = consoles()
    with console.progress("push", 100) as progress, progress.part("a1b2c3", 100) as advance:
        advance(100)
    assert err.getvalue() == "push: done in 0.0 s, 100 B\n"


@pytest.mark.parametrize("total", [None, 1000])
def test_moving_bar_on_a_terminal(total: int | None) -> None:
    console, _, err, _ = consoles(err=FakeTerminal())
    with console.progress("pull", total) as progress:
        progress.resume(100)
        progress.advance(500)
        progress.describe("checking")
    assert "pull" in err.getvalue()
    assert "\x1b[" in err.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 132])
@pytest.mark.parametrize("total", [None, 12_345_678_901])
def test_no_line_of_a_moving_bar_wraps(
    total: int | None, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an image or a blob is called, and also where it looks like markup."""
    monkeypatch.setenv("COLUMNS", str(columns))
    console, _, err, _ = consoles(err=FakeTerminal())
    title = "pull registry.example:5000/[red]team/meta-llama-3.1-70b-instruct:v1@int8-w8a16"
    with console.progress(title, total) as progress:
        progress.describe("comparing predictions of int8 with bf16, 50%, 12.0 s left")
        progress.advance(3_456_789_012)
        with progress.part(f"sha256:{'0123456789abcdef' * 4}", 5_000_000_000):
            wait_until(
                lambda: "sha" in err.getvalue() or "0123" in err.getvalue(), what="a refresh"
            )
    # A bar is drawn over itself: each drawing ends with a return or a line end.
    drawn = re.split(r"[\r\n]|\x1b\[1A", err.getvalue())
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in drawn]
    assert max(map(len, lines)) <= columns
    assert any("v1@int8-w8a16"[-5:] in line for line in lines)


def test_a_narrow_table_leaves_out_what_nobody_has() -> None:
    columns = ("model", "node", "state", "note")
    rows = [("registry.example/team/llama-3.1-70b:v1", "gpu-1", "ready", None)]
    assert "NOTE" in format_table(columns, rows)
    narrow = format_table(columns, rows, width=56)
    assert "NOTE" not in narrow
    assert "llama-3.1-70b:v1" in narrow
    assert "NOTE" in format_table(columns, [(*rows[0][:3], "disk full")], width=56)


def test_no_color_means_plain_lines() -> None:
    console, _, err, _ = consoles(err=FakeTerminal())
    console.configure(no_color=True)
    with console.progress("pull"):
        pass
    console.heading("part")
    console.fail("bad")
    assert "\x1b[" not in err.getvalue()


@given(st.lists(st.tuples(st.floats(0, 60), st.integers(0, 1 << 40)), max_size=20))
def test_meter_never_claims_more_than_came(steps: list[tuple[float, int]]) -> None:
    """Done is the sum; the rate is no more than all of it in the window, and never negative."""
    meter, now = Meter(None, 0.0), 0.0
    for wait, count in steps:
        now += wait
        meter.advance(count, now)
    assert meter.done == sum(count for _, count in steps)
    assert meter.remaining(now) is None
    assert meter.rate(now) >= 0
    assert meter.rate(now) * min(now, 10.0) <= meter.done * 1.000001
    assert meter.rate(now) <= meter.done * 10


@pytest.mark.parametrize(("took", "shown"), [(0.0, False), (0.05, False), (0.1, True), (5.0, True)])
def test_no_rate_is_told_of_a_time_too_short_to_measure(took: float, *, shown: bool) -> None:
    meter = Meter(1000, 0.0)
    meter.advance(1000, took)
    assert ("/s" in meter.total_line(took)) == ("/s" in meter.line(took)) == shown


def test_meter_forgets_a_stall() -> None:
    meter = Meter(1000, 0.0)
    meter.advance(500, 1.0)
    assert meter.rate(1.0) == 500
    assert meter.rate(30.0) == 0
    assert meter.remaining(30.0) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (99_949, "99.9 kB"),
        (99_950, "100 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (2.4e9, "2.4 GB"), (10**20, "100000 PB"),
    ],
)  # fmt: skip
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (75, "1 min 15 s"), (3599.6, "1 h 0 min"),
        (7300, "2 h 1 min"), (90_000, "25 h 0 min"), (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_texts_are_short(a: float, b: float) -> None:
    assert len(format_bytes(a)) <= 9
    assert len(format_duration(b)) <= 12


@pytest.mark.parametrize("as_json", [False, True])
def test_no_text_of_others_reaches_the_terminal_as_a_command(as_json: bool) -> None:
    console, out, err, _ = consoles(err=FakeTerminal())
    console.configure(json=as_json, no_color=True)
    console.table(("name",), [[f"{HOSTILE}\nsecond"]], empty="none")
    console.result({"name": HOSTILE}, HOSTILE)
    console.say(HOSTILE)
    console.heading(HOSTILE)
    console.event("note", text=HOSTILE)
    console.fail(HOSTILE, hint=HOSTILE)
    written = out.getvalue() + err.getvalue()
    assert all(letter == "\n" or letter.isprintable() for letter in written)
    written.encode()
    if as_json:
        table, result = map(json.loads, out.getvalue().splitlines())
        assert (table, result) == ([{"name": f"{HOSTILE}\nsecond"}], {"name": HOSTILE})
    else:
        assert len(out.getvalue().splitlines()) == 3


@given(text=st.text(st.characters(codec=None)))
def test_printable_json_is_the_same_json(text: str) -> None:
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text
    assert len(one_line(text).splitlines()) <= 1


def test_a_terminal_that_was_closed_fails_no_work() -> None:
    """Writing to it is EIO, as a server's supervisor meets when its window is closed while it stops the server."""
    told: list[str] = []
    master, slave = os.openpty()
    # What nobody took is written again, in vain, when it is closed.
    with suppress(OSError), os.fdopen(slave, "w") as err:
        console = Console(out=StringIO(), err=err)
        console.say("shown")
        os.close(master)
        console.say("to nobody")
        console.fail("to nobody")
        told.append("went on")
    assert told == ["went on"]


def test_a_count_agrees_with_its_noun() -> None:
    assert [plural(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    written = re.compile(r"[\w)]\} (models|files|blobs|layers|parts|findings)\b")
    sources = (Path(__file__).parents[2] / "weightyard").rglob("*.py")
    assert [path.name for path in sources if written.search(path.read_text())] == []


def test_work_that_goes_on_says_so_when_it_is_interrupted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt), Console().resumable():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "The same command goes on from here: what was done is kept.\n"
    with pytest.raises(ValueError, match="other"), Console().resumable():
        raise ValueError("other")
    assert capsys.readouterr().err == ""
