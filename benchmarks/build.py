"""Checkpoint to OCI layout: `weightyard build` beside a sequential `cp` and `openssl sha256`, in one run.

Both read the checkpoint from the page cache and both make their output durable: ours by fsync of each blob and
directory, theirs by `sync` on each file. The order alternates between pairs; outputs, and our digest caches, are
deleted between runs. The raw pairs are printed, then medians, their ratio and the peak memory. Fails, rather than
skips, when a peer is missing, when the ratio is above 1.25 or when the peak is above 300 MB.

    .venv/bin/python -m benchmarks.build --gigabytes 2 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.pull import Peak
from benchmarks.push import weightyard
from tests.synthetic import synthetic_checkpoint

MOST_RATIO = 1.25
MOST_MEGABYTES = 300.0
PEER = """\
set -euo pipefail
cp -r "$1" "$2"
sync "$2"/* "$2"
openssl sha256 "$1"/* > /dev/null
"""


@dataclass(frozen=True)
class Run:
    """One run: wall and CPU seconds, peak resident megabytes."""

    wall: float
    cpu: float
    rss_mb: float


def measure(command: Sequence[str], home: Path) -> Run:
    """Runs a command with its own home directory. Raises SystemExit when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
    )
    assert process.stderr is not None
    peak = Peak(process.pid)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    peak.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {errors.decode(errors='replace')[-800:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak.megabytes)


def warm(source: Path) -> int:
    """Reads the whole checkpoint into the page cache; returns its bytes."""
    total, buffer = 0, bytearray(4 << 20)
    for path in source.iterdir():
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def run_once(name: str, source: Path, work: Path) -> Run:
    """One run from a clean state, without dirty pages of earlier runs."""
    out, home = work / "out", work / "home"
    for path in (out, home):
        shutil.rmtree(path, ignore_errors=True)
    home.mkdir()
    # Dirty pages of the previous run would be written during this one.
    os.sync()
    warm(source)
    if name == "ours":
        command = weightyard("build", str(source), "--to", f"oci:{out}:v1")
    else:
        command = ["bash", "-c", PEER, "peer", str(source), str(out)]
    run = measure(command, home)
    shutil.rmtree(out)
    return run


def pairs(source: Path, work: Path, count: int) -> list[dict[str, Run]]:
    """`count` pairs after one warm-up pair; each in the opposite order of the one before."""
    found = []
    for number in range(count + 1):
        order = ("ours", "peer") if number % 2 else ("peer", "ours")
        runs = {name: run_once(name, source, work) for name in order}
        if number:
            found.append(runs)
            print(json.dumps({name: asdict(run) for name, run in sorted(runs.items())}), flush=True)
    return found


def main() -> None:
    """Prints the pairs and the result. Exits with 1 when a bound isn't met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--directory", type=Path, help="where to work; the default is the temporary directory"
    )
    given = parser.parse_args()
    missing = [name for name in ("bash", "cp", "sync", "openssl") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="bench-build-", dir=given.directory) as scratch:
        work = Path(scratch)
        source = synthetic_checkpoint(work / "source", total_bytes=int(given.gigabytes * 1e9))
        size = warm(source)
        found = pairs(source, work, given.pairs)
    report(found, size)


def report(found: Sequence[dict[str, Run]], size: int) -> None:
    """Prints medians, the ratio and the peak. Raises SystemExit when a bound isn't met."""
    ours, peer = (statistics.median(runs[name].wall for runs in found) for name in ("ours", "peer"))
    ratio = statistics.median(runs["ours"].wall / runs["peer"].wall for runs in found)
    peak = max(runs["ours"].rss_mb for runs in found)
    print(f"{size / 1e9:.2f} GB, {len(found)} pairs, {os.cpu_count()} cores")
    print(f"weightyard build   {ours:.2f} s  {size / 1e9 / ours:.2f} GB/s  peak {peak:.0f} MB")
    print(f"cp, openssl sha256 {peer:.2f} s  {size / 1e9 / peer:.2f} GB/s")
    print(
        f"median of the pairs' ratios {ratio:.2f} (at most {MOST_RATIO}), peak at most {MOST_MEGABYTES:.0f} MB"
    )
    if ratio > MOST_RATIO or peak > MOST_MEGABYTES:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
