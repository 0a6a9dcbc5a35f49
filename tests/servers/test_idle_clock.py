"""Idle seconds: none of them pass while the machine works, all of them while it has nothing to do."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.servers.idle_clock import (
    SLOWEST,
    IdleClock,
    Sample,
    count_cores,
    idle_seconds,
    parse_idle,
)

STAT = "cpu  4705 356 584 3699 23 0 17 5 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"


def samples(*idle: float) -> Iterator[Sample]:
    """One sample a second; `idle` are the cores' idle seconds of each."""
    return (Sample(float(second), each) for second, each in enumerate(itertools.accumulate(idle)))


@pytest.mark.parametrize(
    ("idle", "counted"),
    [
        (2.0, 1.0),  # both of two cores idle
        (1.5, 0.5),
        (1.0, SLOWEST),  # one works, for whomever
        (0.0, SLOWEST),
        (2.1, 1.0),  # the kernel's counters are a little off
    ],
)
def test_only_the_time_in_which_no_core_works_counts(idle: float, counted: float) -> None:
    readings = samples(0, idle)
    clock = IdleClock(lambda: next(readings), cores=2)
    assert clock() == pytest.approx(counted)


@given(
    wall=st.floats(0.01, 1e4), shares=st.floats(0, 1), cores=st.integers(1, 256)
)  # fmt: skip
def test_it_never_runs_faster_than_the_wall_nor_stands(
    wall: float, shares: float, cores: int
) -> None:
    found = idle_seconds(Sample(0, 0), Sample(wall, wall * cores * shares), cores=cores)
    assert wall * SLOWEST <= found <= wall


def test_calls_in_quick_succession_get_one_answer() -> None:
    readings = iter([Sample(0, 0), Sample(0.1, 0.2), Sample(0.3, 0.6), Sample(0.35, 0.7)])
    clock = IdleClock(lambda: next(readings), cores=2)
    assert [clock(), clock(), clock()] == [0, pytest.approx(0.3), pytest.approx(0.3)]


def test_the_kernels_count_without_its_waiting_for_disks() -> None:
    assert parse_idle(STAT) == 36.99
    assert count_cores(STAT) == 1


def test_a_test_that_stands_still_is_ended_with_its_stacks(tmp_path: Path) -> None:
    """pytest's own process, with the plugin and a limit that a second of idleness passes."""
    (tmp_path / "test_hang.py").write_text(
        "import threading, pytest\n"
        "@pytest.mark.timeout(0.01)\n"
        "def test_hangs(): threading.Event().wait()\n"
        "def test_next(): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.standstill", "-p", "no:randomly",
         f"--rootdir={tmp_path}", "-c", "/dev/null", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 failed, 1 passed" in done.stdout
    assert "threading.Event().wait()" in done.stdout
