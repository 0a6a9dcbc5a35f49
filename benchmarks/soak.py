"""An agent under pulls, evictions, leases and reads for some minutes: its memory, descriptors and threads stay flat.

The budget holds two of three models, so that most pulls evict one. The first half warms up, with at least 20,000
operations: until then the heap's free part grows, by ever less, while what is in use stays the same. Over the rest the
slope of a line through all samples counts. Fails when memory grows by more than 0.25 MB a minute, or descriptors or
threads by more than one a minute, or if it was too short to tell.

    .venv/bin/python -m benchmarks.soak --minutes 60
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cache_agent.servers.http_client import fetch
from tests.faults.load import under_load
from tests.faults.site import TIGHT, Site
from tests.faults.stage import Stage
from tests.faults.strangers import PATHS, SERVERS, addresses

MOST_MEGABYTES_A_MINUTE = 0.25
MOST_A_MINUTE = 1.0
SAMPLE_SECONDS = 2.0
WARM_UP_OPERATIONS = 20_000
FEWEST_SAMPLES = 30


@dataclass(frozen=True)
class Sample:
    """One look at a process."""

    minutes: float
    megabytes: float
    descriptors: int
    threads: int
    operations: int

    @classmethod
    def of(cls, pid: int, began: float, operations: int) -> Sample:
        process = Path(f"/proc/{pid}")
        lines = (process / "status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        return cls(
            (time.monotonic() - began) / 60,
            int(status["VmRSS"].split()[0]) / 1e3,
            len(list((process / "fd").iterdir())),
            int(status["Threads"]),
            operations,
        )


def judged(samples: Sequence[Sample]) -> list[Sample]:
    """The samples after the warm-up."""
    half = samples[-1].minutes / 2
    return [s for s in samples if s.minutes >= half and s.operations >= WARM_UP_OPERATIONS]


def slope(samples: Sequence[Sample], name: str) -> float:
    """By how much a value grows in a minute."""
    line = statistics.linear_regression(
        [s.minutes for s in samples], [getattr(s, name) for s in samples]
    )
    return float(line.slope)


def soak(site: Site, minutes: float) -> tuple[list[Sample], int]:
    """The samples, and how many operations there were."""
    site.settings.update(TIGHT | SERVERS)
    site.start()
    assert site.program is not None
    at = addresses(site)
    began, samples = time.monotonic(), []
    with under_load(site) as load:
        while time.monotonic() < began + minutes * 60:
            samples.append(Sample.of(site.program.pid, began, load.done))
            for name, path in PATHS.items():
                fetch(at[name], path)
            site.assert_no_wrong_byte()
            time.sleep(SAMPLE_SECONDS)
            site.assert_alive()
    site.prove()
    return samples, load.done


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    with Stage() as stage, stage.round(random.Random(options.seed)) as fresh:  # noqa: S311
        samples, operations = soak(fresh.site, options.minutes)
    rest = judged(samples)
    if len(rest) < FEWEST_SAMPLES:
        print(f"too short: {operations} operations, {len(rest)} samples to judge", file=sys.stderr)
        return 1
    grown = {name: slope(rest, name) for name in ("megabytes", "descriptors", "threads")}
    last = samples[-1]
    print(
        json.dumps(
            {
                "minutes": round(last.minutes, 1),
                "operations": operations,
                "megabytes": round(last.megabytes, 1),
                "a_minute": {name: round(value, 3) for name, value in grown.items()},
            }
        )
    )
    limits = {
        "megabytes": MOST_MEGABYTES_A_MINUTE,
        "descriptors": MOST_A_MINUTE,
        "threads": MOST_A_MINUTE,
    }
    missed = [
        f"{name} grow by {grown[name]:.2f} a minute"
        for name in limits
        if grown[name] > limits[name]
    ]
    for each in missed:
        print(f"missed: {each}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
