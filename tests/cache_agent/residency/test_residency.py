"""The memory tier on real pages: measured, warmed, locked, within its budget, giving way under pressure."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_agent.node.metrics import Metrics
from cache_agent.residency.pages import Locked, resident
from cache_agent.residency.pressure import MemoryFacts, parse_pressure
from cache_agent.residency.warmer import PageCacheWarmer
from modelimage.errors import NoSpace
from tests.cache_agent.images import noise
from tests.servers.process import wait_until

# Whoever may lock memory may lock this much.
LOCKABLE = 32 << 10


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with plenty of memory and no pressure."""
    path = tmp_path / "proc"
    (path / "pressure").mkdir(parents=True)
    (path / "self").mkdir()
    (path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   102400 kB\n")
    (path / "self/cgroup").write_text("0::/kubepods/agent\n")
    set_pressure(path, 0.0)
    return path


def set_pressure(proc: Path, some: float) -> None:
    (proc / "pressure/memory").write_text(
        f"some avg10={some:.2f} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0 avg300=0 total=0\n"
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk: what a filesystem in memory holds can't be anywhere else."""
    place = Path(__file__).parent if filesystem(tmp_path) in ("tmpfs", "ramfs") else tmp_path
    with tempfile.TemporaryDirectory(prefix="wy-", dir=place) as path:
        yield Path(path)


def filesystem(path: Path) -> str:
    """The kind of the filesystem that a directory is on."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    kinds = [line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == number]
    return kinds[0] if kinds else ""


def cold_file(path: Path, size: int) -> Path:
    """A file on the disk and not in memory."""
    with path.open("wb") as file:
        file.write(noise(size))
        file.flush()
        os.fsync(file.fileno())
    wait_until(lambda: _is_dropped(path), what="cold file")
    return path


def _is_dropped(path: Path) -> bool:
    """The kernel keeps pages that it is busy with."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(path).resident == 0


def test_a_cold_file_is_measured_cold_and_a_warmed_one_warm(disk: Path, proc: Path) -> None:
    path = cold_file(disk / "w", 5 << 20)
    warmer = PageCacheWarmer(MemoryFacts(proc))
    assert resident(path).resident == 0
    done = warmer.warm([path])
    assert done.read == 5 << 20
    assert done.stopped is None
    assert done.cgroup == "/kubepods/agent"
    assert resident(path).resident == 5 << 20
    assert done.now.believable


def test_what_warming_brings_and_what_it_finds_in_memory_is_counted(disk: Path, proc: Path) -> None:
    path, metrics = cold_file(disk / "w", 5 << 20), Metrics()
    warmer = PageCacheWarmer(MemoryFacts(proc), events=metrics)
    for _ in range(2):
        warmer.warm([path])
    text = metrics.exposition()[0].decode()
    assert "weightyard_warmed_bytes_total 5.24288e+06" in text
    assert "weightyard_warm_hit_bytes_total 5.24288e+06" in text


def test_warming_stops_under_pressure_and_says_so(disk: Path, proc: Path) -> None:
    path = cold_file(disk / "w", 1 << 20)
    set_pressure(proc, 42.0)
    done = PageCacheWarmer(MemoryFacts(proc)).warm([path])
    assert done.read == 0
    assert done.stopped is not None
    assert "42" in done.stopped


def test_what_does_not_fit_the_budget_is_refused(disk: Path, proc: Path) -> None:
    path = cold_file(disk / "w", 2 << 20)
    with pytest.raises(NoSpace):
        PageCacheWarmer(MemoryFacts(proc), budget=1 << 20).warm([path])
    with pytest.raises(NoSpace):
        PageCacheWarmer(MemoryFacts(proc), budget=1 << 20).lock([path])


def test_locked_pages_are_in_memory_and_go_under_pressure(disk: Path, proc: Path) -> None:
    path = cold_file(disk / "w", LOCKABLE)
    warmer = PageCacheWarmer(MemoryFacts(proc))
    assert warmer.lock([path]) == LOCKABLE
    assert resident(path).resident == LOCKABLE
    assert not warmer.relieve()
    set_pressure(proc, 50.0)
    assert warmer.relieve()
    assert warmer.lock([]) == 0


def test_an_empty_file_can_be_measured_and_locked(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert resident(path).size == 0
    Locked(path).release()


@pytest.mark.parametrize(
    ("text", "some"),
    [
        ("some avg10=1.50 avg60=2 avg300=3 total=4", 1.5),
        ("", 0.0),
        ("garbage", 0.0),
        ("some x", 0.0),
    ],
)
def test_pressure_is_read_from_the_kernels_words(text: str, some: float) -> None:
    assert parse_pressure(text) == some
