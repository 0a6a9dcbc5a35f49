"""OCI layout to docker-registry: `weightyard copy` beside `skopeo copy` and `buildah push`, in one run.

All push the same uncompressed layers, from the page cache, each time into a registry that has never seen them and
with nothing remembered of earlier pushes. Order alternates; the registry's storage is deleted between runs. Then ours
pushes once more, which must send no blob and take less than a second. The raw runs are printed, then medians. Fails,
rather than skips, when a peer is missing, when we take above 1.1 times as long as the faster peer, or above 300 MB.

    .venv/bin/python -m benchmarks.push --gigabytes 2 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks.pull import Run, measure
from tests.servers.process import child_environment, program
from tests.servers.registry import DockerRegistry
from weightyard.demo.synthetic import synthetic_checkpoint

MOST_RATIO = 1.1
MOST_MEGABYTES = 300.0
MOST_SECONDS_AGAIN = 1.0
REPOSITORY = "bench/model"

Command = Callable[[str], Sequence[str]]


def weightyard(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "weightyard.cli", "--quiet", *arguments]


def commands(layout: Path, work: Path) -> dict[str, Command]:
    """What is compared: a command for each, given the registry's host. Raises when one isn't installed."""
    policy = work / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    store = [
        "--root",
        str(work / "store"),
        "--runroot",
        str(work / "run"),
        "--storage-driver",
        "vfs",
    ]
    import_image(layout, work, [program("buildah"), *store])
    skopeo = [
        program("skopeo"), "--policy", str(policy), "copy", "--preserve-digests", "--multi-arch=all",
        "--dest-tls-verify=false", f"oci:{layout}:v1",
    ]  # fmt: skip
    buildah = [
        program("buildah"), *store, "push", "--signature-policy", str(policy), "--tls-verify=false",
        "--disable-compression", "bench",
    ]  # fmt: skip
    return {
        "weightyard": lambda host: weightyard(
            "copy", f"oci:{layout}:v1", f"{host}/{REPOSITORY}:v1"
        ),
        "skopeo": lambda host: [*skopeo, f"docker://{host}/{REPOSITORY}:v1"],
        "buildah": lambda host: [*buildah, f"docker://{host}/{REPOSITORY}:v1"],
    }


def import_image(layout: Path, work: Path, buildah: Sequence[str]) -> None:
    """Put the image into buildah's own storage: it pushes from nowhere else."""
    environment = child_environment(work)
    pull = [*buildah, "pull", "--signature-policy", str(work / "policy.json"), f"oci:{layout}:v1"]
    done = subprocess.run(pull, check=True, capture_output=True, text=True, env=environment)
    tag = [*buildah, "tag", done.stdout.split()[-1], "bench"]
    subprocess.run(tag, check=True, capture_output=True, env=environment)


def push_once(name: str, command: Command, work: Path) -> tuple[Run, Run | None]:
    """Push into a registry that is new; ours pushes a second time."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=work)))
        registry = stack.enter_context(DockerRegistry())
        shutil.copy(work / "policy.json", home)

        def run() -> Run:
            servers = [registry._process.pid]
            return measure(name, command(registry.host), servers=servers, daemon=None, home=home)

        first = run()
        if name != "weightyard":
            return first, None
        uploads = len([a for a in registry.accesses() if a.method in ("PATCH", "PUT", "POST")])
        again = run()
        sent = [a for a in registry.accesses() if a.method in ("PATCH", "POST")]
        if len(sent) > uploads:
            raise SystemExit("pushing again sent blobs")
        return first, again


def report(runs: Sequence[Run], again: Sequence[Run], size: int) -> list[str]:
    """Print the medians; returns what missed its target."""
    print(f"\n{'':12} {'wall s':>8} {'GB/s':>6} {'CPU s':>8} {'server':>8} {'RSS MB':>8}")
    walls: dict[str, float] = {}
    peak = 0.0
    for name in dict.fromkeys(run.program for run in runs):
        own = [run for run in runs if run.program == name]
        wall, cpu, server, rss = (
            statistics.median(getattr(run, field) for run in own)
            for field in ("wall", "cpu", "server_cpu", "rss_mb")
        )
        walls[name] = wall
        peak = rss if name == "weightyard" else peak
        print(f"{name:12} {wall:8.2f} {size / wall / 1e9:6.2f} {cpu:8.2f} {server:8.2f} {rss:8.0f}")
    second = statistics.median(run.wall for run in again)
    ratio = walls["weightyard"] / min(wall for name, wall in walls.items() if name != "weightyard")
    print(f"times the faster peer: {ratio:.2f}; pushed again in {second:.2f} s")
    missed = []
    if ratio > MOST_RATIO:
        missed.append(f"{ratio:.2f} times the faster peer, above {MOST_RATIO}")
    if peak > MOST_MEGABYTES:
        missed.append(f"{peak:.0f} MB, above {MOST_MEGABYTES:.0f}")
    if second > MOST_SECONDS_AGAIN:
        missed.append(f"{second:.2f} s to push again, above {MOST_SECONDS_AGAIN}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shard-gigabytes", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-push-") as directory:
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
        contenders = commands(layout, work)
        runs: list[Run] = []
        again: list[Run] = []
        for number in range(options.rounds + 1):
            for name in list(contenders) if number % 2 else list(reversed(contenders)):
                os.sync()
                first, second = push_once(name, contenders[name], work)
                # The first round warms the page cache and the machine's memory.
                if number:
                    runs.append(first)
                    again += [second] if second else []
                    print(json.dumps(asdict(first)), flush=True)
        missed = report(runs, again, size)
    for miss in missed:
        print(f"missed: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
