"""A build with both rounded variants beside its parts, each alone: published weights, INT8, INT4; pairs in one run.

The parts are `weightyard build` of the published weights, and for each variant `weightyard quantize` and `weightyard
build` of its output. The source isn't in the page cache when a run begins, so the bytes that each side reads of it
from the disk are counted beside the time: a build should read it once, its parts read it three times. Exits with 1
when the build takes longer than its parts or reads more than `MOST_READ` of the source.

    .venv/bin/python -m benchmarks.variants --gigabytes 1 --pairs 3
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.synthetic import synthetic_checkpoint

MOST_READ = 1.1
VARIANTS = ("int8", "int4")
BLOCK = 512  # bytes, the unit of ru_inblock


@dataclass(frozen=True)
class Cost:
    """Wall seconds, and bytes read from the disk."""

    seconds: float
    read: int


def run(*arguments: str | Path, home: Path) -> int:
    """Runs one command; returns the bytes that it read from the disk. Raises SystemExit when it fails."""
    command = [sys.executable, "-m", "weightyard.cli", "--quiet", *map(str, arguments)]
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"weightyard {arguments[0]} failed")
    return usage.ru_inblock * BLOCK


def together(source: Path, work: Path) -> int:
    """One build of everything."""
    named = [part for name in VARIANTS for part in ("--variant", name)]
    image = f"oci:{work / 'together'}:v1"
    return run("build", source, "--to", image, *named, "--engine", "rtn", home=work)


def apart(source: Path, work: Path) -> int:
    """The same work in five commands."""
    read = run("build", source, "--to", f"oci:{work / 'published'}:v1", home=work)
    for name in VARIANTS:
        made = work / name
        read += run("quantize", source, made, "--scheme", name, "--engine", "rtn", home=work)
        read += run("build", made, "--to", f"oci:{work / 'layouts' / name}:v1", home=work)
    return read


def cold(source: Path) -> None:
    """Writes all dirty pages to the disk and drops the source from the page cache."""
    os.sync()
    for path in source.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(name: str, source: Path, work: Path) -> Cost:
    """Measures one side from a clean state."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    cold(source)
    began = time.perf_counter()
    read = together(source, work) if name == "together" else apart(source, work)
    return Cost(time.perf_counter() - began, read)


def report(found: Sequence[dict[str, Cost]], size: int) -> None:
    """Prints medians and bounds. Raises SystemExit when a bound isn't met."""
    for name in ("together", "apart"):
        seconds = statistics.median(pair[name].seconds for pair in found)
        read = statistics.median(pair[name].read for pair in found) / size
        print(f"{name:9} {seconds:6.2f} s, {read:.2f} of the source read from the disk")
    ratio = statistics.median(pair["together"].seconds / pair["apart"].seconds for pair in found)
    read = statistics.median(pair["together"].read for pair in found) / size
    print(
        f"together takes {ratio:.2f} of its parts (at most 1), reads {read:.2f} (at most {MOST_READ})"
    )
    if ratio > 1 or read > MOST_READ:
        raise SystemExit(1)


def main() -> None:
    """Prints each pair, then the result. Exits with 1 when a bound isn't met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-variants-") as scratch:
        work = Path(scratch)
        source = synthetic_checkpoint(
            work / "source", total_bytes=int(given.gigabytes * 1e9), seed=1
        )
        size = sum(path.stat().st_size for path in source.iterdir())
        found = []
        for number in range(given.pairs + 1):
            order = ("together", "apart") if number % 2 else ("apart", "together")
            pair = {name: measure(name, source, work / "run") for name in order}
            if number:  # the first pair warms up
                found.append(pair)
                print(pair, flush=True)
    report(found, size)


if __name__ == "__main__":
    main()
