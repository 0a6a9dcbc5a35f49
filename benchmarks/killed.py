"""A push that is killed at ten random points and restarted: what went over the line, as a multiple of the image.

Three situations, each into a registry that has never seen the image, counted by a proxy in between: ended with SIGTERM,
as CI ends a job; killed before a registry that itself knows how far an upload is, by whole chunks (emulated);
killed before a bare docker-registry, which can't go on in the middle of a chunk and is told for comparison. Fails
above 1.05 in the first two.

    .venv/bin/python -m benchmarks.killed --gigabytes 2
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.push import weightyard
from tests.servers.faulty_registry import Fault, FaultyRegistry
from tests.servers.process import child_environment, wait_until
from tests.servers.registry import DockerRegistry
from tests.servers.registry_kinds import KeepsSessions
from weightyard.demo.synthetic import synthetic_checkpoint

KILLS = 10
MOST_RATIO = 1.05


@dataclass(frozen=True)
class Situation:
    """How the push is ended, and what stands before the registry; `bounded` when the ratio must hold."""

    name: str
    sent: signal.Signals
    faults: tuple[Fault, ...]
    bounded: bool


def situations() -> list[Situation]:
    return [
        Situation("SIGTERM, docker-registry", signal.SIGTERM, (), True),
        Situation("SIGKILL, sessions kept", signal.SIGKILL, (KeepsSessions(),), True),
        Situation("SIGKILL, docker-registry", signal.SIGKILL, (), False),
    ]


def bytes_sent(layout: Path, size: int, situation: Situation, work: Path, seed: int) -> int:
    """Push, end it at ten points that the seed draws, and push to the end."""
    points = sorted(random.Random(seed).uniform(0.02, 0.95) for _ in range(KILLS))  # noqa: S311
    environment = child_environment(work)
    shutil.rmtree(work / ".cache", ignore_errors=True)
    with (
        DockerRegistry() as registry,
        FaultyRegistry(registry.host, *situation.faults) as proxy,
    ):
        command = weightyard("copy", f"oci:{layout}:v1", f"{proxy.host}/bench/killed:v1")
        for point in points:
            target = max(int(point * size), proxy.uploaded + size // 100)
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            wait_until(
                lambda process=process, target=target: (
                    proxy.uploaded >= target or process.poll() is not None
                ),
                what="progress",
                seconds=120,
            )
            process.send_signal(situation.sent)
            process.wait()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return proxy.uploaded


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shard-gigabytes", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    missed = []
    with tempfile.TemporaryDirectory(prefix="bench-killed-") as directory:
        work = Path(directory)
        checkpoint = synthetic_checkpoint(
            work / "checkpoint",
            total_bytes=int(options.gigabytes * 1e9),
            shard_bytes=int(options.shard_gigabytes * 1e9),
        )
        layout = work / "layout"
        build = weightyard("build", str(checkpoint), "--to", f"oci:{layout}:v1")
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(checkpoint)
        size = sum(path.stat().st_size for path in (layout / "blobs/sha256").iterdir())
        for situation in situations():
            sent = bytes_sent(layout, size, situation, work, options.seed)
            ratio = sent / size
            print(json.dumps({"situation": situation.name, "ratio": round(ratio, 3)}), flush=True)
            if situation.bounded and ratio > MOST_RATIO:
                missed.append(f"{situation.name}: {ratio:.3f}, above {MOST_RATIO}")
    for miss in missed:
        print(f"missed: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
