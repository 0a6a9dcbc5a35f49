"""Children are given up when they stand still, and never because they are slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.child import ProcessActivity, StallTimer, read_stat, run_child, work_of
from modelimage.errors import TimedOut
from tests.servers.process import wait_until

LIMIT = 100.0
FORMER = ProcessActivity(frozenset({7}), cpu=5.0, read=1 << 30, written=100)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def timer(clock: Clock) -> StallTimer:
    """One that has seen FORMER at time 0."""
    made = StallTimer(LIMIT, clock)
    assert not made.stalled(FORMER)
    return made


def stalled_at(second: float, clock: Clock, watch: StallTimer, work: ProcessActivity) -> bool:
    """Look every second until then; what the last look found."""
    found = False
    while clock.now < second:
        clock.now += 1
        found = watch.stalled(work)
    return found


@pytest.mark.parametrize(
    "progress",
    [
        replace(FORMER, cpu=FORMER.cpu + 1),
        replace(FORMER, read=FORMER.read + (1 << 20)),
        replace(FORMER, written=FORMER.written + 1),
        replace(FORMER, written=0),  # a log that was rotated
        replace(FORMER, processes=frozenset({7, 8})),
        replace(FORMER, processes=frozenset()),
    ],
)
def test_progress_of_any_kind_starts_the_time_anew(progress: ProcessActivity) -> None:
    clock = Clock()
    watch = timer(clock)
    assert not stalled_at(99, clock, watch, FORMER)
    clock.now = 100
    assert not watch.stalled(progress)
    assert not stalled_at(200, clock, watch, progress)
    assert stalled_at(201, clock, watch, progress)


@pytest.mark.parametrize(
    "stirring", [FORMER, replace(FORMER, cpu=FORMER.cpu + 0.9), replace(FORMER, read=FORMER.read + 100)]
)  # fmt: skip
def test_the_stirring_of_a_program_that_waits_is_none(stirring: ProcessActivity) -> None:
    clock = Clock()
    watch = timer(clock)
    assert not stalled_at(100, clock, watch, stirring)
    assert stalled_at(101, clock, watch, stirring)


def test_a_watcher_that_was_stopped_with_the_program_blames_it_for_nothing() -> None:
    """As when a container is paused or a machine suspended for an hour."""
    clock = Clock()
    watch = timer(clock)
    assert not stalled_at(40, clock, watch, FORMER)
    clock.now += 3600
    assert not watch.stalled(FORMER)
    assert not watch.stalled(replace(FORMER, cpu=FORMER.cpu + 1))
    assert stalled_at(clock.now + 101, clock, watch, replace(FORMER, cpu=FORMER.cpu + 1))


@given(steps=st.lists(st.tuples(st.floats(0, LIMIT), st.floats(1, 100)), max_size=50))
def test_what_works_a_hundredth_of_a_core_is_never_given_up(
    steps: list[tuple[float, float]],
) -> None:
    clock = Clock()
    watch = timer(clock)
    work = FORMER
    for seconds, cpu in steps:
        clock.now += seconds
        work = replace(work, cpu=work.cpu + cpu)
        assert not watch.stalled(work)


def test_slow_work_adds_up_between_looks() -> None:
    clock = Clock()
    watch = timer(clock)
    for second in range(1, 1000):
        clock.now = second
        assert not watch.stalled(replace(FORMER, cpu=FORMER.cpu + second / 50))


def test_the_work_of_a_process_is_that_of_its_descendants_too() -> None:
    code = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'while True: pass']); "
        "print(child.pid, flush=True); sys.stdin.read(); child.kill(); child.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        found = work_of(parent.pid, written=3)
        assert {parent.pid, child} <= found.processes
        assert found.written == 3
        assert found.read > 0
        wait_until(lambda: work_of(parent.pid).cpu > found.cpu + 0.5, what="work of the child")
        parent.stdin.close()


def test_a_process_that_is_gone_did_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert work_of(child.pid).cpu == 0


def test_a_child_gets_its_input_and_is_run_to_its_end() -> None:
    code = (
        "import sys; print(sys.stdin.read().upper()); print('warned', file=sys.stderr); sys.exit(3)"
    )
    done = run_child([sys.executable, "-c", code], stdin="words", stall_seconds=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "WORDS\n", "warned\n")


def test_input_is_sent_once_however_long_the_child_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelimage.child._LOOK_SECONDS", 0.01)
    code = "import sys, time; time.sleep(0.2); print(len(sys.stdin.read()))"
    done = run_child([sys.executable, "-c", code], stdin="x" * 1_000_000, stall_seconds=60)
    assert done.stdout == "1000000\n"


FAMILY = """
import subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
open(sys.argv[1], "w").write(str(child.pid))
threading.Event().wait()
"""


def test_a_child_that_stands_still_is_killed_with_its_descendants_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("modelimage.child._LOOK_SECONDS", 0.01)
    with pytest.raises(TimedOut, match=r"made no progress for 3 s"):
        run_child([sys.executable, "-c", FAMILY, str(tmp_path / "pid")], stall_seconds=3)
    grandchild = int((tmp_path / "pid").read_text())
    wait_until(lambda: (read_stat(grandchild) or ["Z"])[0] == "Z", what="end of the grandchild")


def test_a_daemon_that_a_child_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    """It still holds the child's output."""
    code = (
        "import subprocess, sys; "
        "daemon = subprocess.Popen([sys.executable, '-c', 'import threading; threading.Event().wait()']); "
        "print(daemon.pid)"
    )
    done = run_child([sys.executable, "-c", code], stall_seconds=300)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 0


def test_a_child_with_a_lower_number_than_its_parent_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where the kernel has started to count again. A process that isn't ours to see is passed over."""
    for pid, parent in ((900, 1), (20, 900), (10, 20), (30, 1)):
        (tmp_path / str(pid)).mkdir()
        fields = ["S", str(parent), *["0"] * 9, "100", "0", "0", "0"]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a b) c) {' '.join(fields)}")
    (tmp_path / "40").mkdir()
    monkeypatch.setattr("modelimage.child._PROC", tmp_path)
    assert work_of(900).processes == {900, 20, 10}
    assert work_of(900).cpu == 300 / os.sysconf("SC_CLK_TCK")


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        run_child(["weightyard-no-such-program"], stall_seconds=1)
