"""Registry to verified, durable files: `weightyard pull` beside skopeo, containerd, oras and hf, in one run.

Each round runs every program on the same bytes, in alternating order; its output is deleted before the next one starts.
Each runs twice in a row and the second run counts: on a virtual machine the cost of memory depends on its use by the
previous program. `hf download` reads from a Hub on loopback, the others from one registry. Wall time, CPU seconds (of
the program, its daemon, and the server) and peak memory of each run are printed, then medians and ratios.

The parts of a pull alternate with the programs and process as many bytes: concurrently, by processes that never wait
for each other, and each with the machine to itself. No pull can need less CPU time than the concurrent parts, or be
faster than the disk. That bound is compared with the seconds that the pull itself reports, without the interpreter's
start; the table has the whole. A missing program is a failure, not a skip. Fails when a target is missed.

    .venv/bin/python -m benchmarks.pull --gigabytes 2 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from benchmarks._parts import Parts, Task, measure_parts, room_for
from modelimage.access import Access, open_reader
from modelimage.reference import RegistryReference, parse_image
from modelimage.resolve import resolve_model
from modelimage.stage_workers import available_cores
from tests.servers.containerd import Containerd
from tests.servers.hub import Hub
from tests.servers.process import child_environment, program
from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint

REPOSITORY: Final = "bench/model"
LEAST_OF_BOUND: Final = 0.85
Summary = dict[str, Any]
_WEIGHTYARD = (sys.executable, "-m", "weightyard.cli", "--json", "--quiet")
TICKS = os.sysconf("SC_CLK_TCK")
ORAS = """
import sys, oras.client, pathlib
client = oras.client.OrasClient(insecure=True, tls_verify=False)
image, out = sys.argv[1:]
container = client.get_container(image)
manifest = client.get_manifest(container)
pathlib.Path(out).mkdir(parents=True)
for layer in manifest["layers"]:
    client.download_blob(container, layer["digest"], str(pathlib.Path(out) / layer["digest"][7:]))
"""


@dataclass(frozen=True)
class Run:
    """One run of one program: seconds, CPU seconds, peak resident megabytes (0: of a daemon, not measured).

    `work`: the seconds that the program itself reports, without its start; `wall` when it reports none.
    """

    program: str
    wall: float
    work: float
    sync: float
    cpu: float
    server_cpu: float
    rss_mb: float


def cpu_of(pid: int) -> float:
    """CPU seconds used by a process and its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def _seconds(said: str) -> float | None:
    """The seconds reported by `weightyard --json pull`."""
    try:
        return float(json.loads(said)["seconds"])
    except (ValueError, KeyError, TypeError):
        return None


def serving(servers: Sequence[int]) -> float:
    """CPU seconds of the servers; of this process when none is given, since it then serves."""
    return sum(map(cpu_of, servers)) if servers else time.process_time()


class Peak(threading.Thread):
    """Samples a process's peak resident memory. (wait4's maximum includes the parent's at the fork.)"""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.megabytes = 0.0
        self._status = Path(f"/proc/{pid}/status")
        self.start()

    def run(self) -> None:
        while True:
            try:
                text = self._status.read_text()
            except OSError:
                return
            if "VmHWM:" not in text:
                return
            self.megabytes = int(text.partition("VmHWM:")[2].split()[0]) / 1e3
            time.sleep(0.02)


def measure(
    name: str,
    command: Sequence[str],
    *,
    servers: Sequence[int],
    daemon: int | None,
    home: Path,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Runs a command, then syncs its files. Raises SystemExit when it fails."""
    before, daemon_before = serving(servers), cpu_of(daemon) if daemon else 0.0
    started = time.perf_counter()
    said = home / "stdout"
    process = subprocess.Popen(
        command,
        stdout=said.open("wb"),
        stderr=subprocess.PIPE,
        env={**child_environment(home), **(environment or {})},
    )
    assert process.stderr is not None
    peak = Peak(process.pid)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    peak.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{name} failed: {errors.decode(errors='replace')[-800:]}")
    os.sync()
    sync = time.perf_counter() - started - wall
    own = usage.ru_utime + usage.ru_stime
    daemon_cpu = cpu_of(daemon) - daemon_before if daemon else 0.0
    server = serving(servers) - before
    inside = _seconds(said.read_text(errors="replace")) or wall
    peak_mb = 0.0 if daemon else peak.megabytes
    return Run(name, wall, inside, sync, own + daemon_cpu, server, peak_mb)


def peers(
    registry: DockerRegistry, containerd: Containerd | None, hub: Hub | None, image: str, work: Path
) -> dict[str, Callable[[], Run]]:
    """The programs to compare with these servers, by name. Raises when a program isn't installed."""
    servers = [registry._process.pid]
    target = work / "out"
    policy = work / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def run(name: str, command: Sequence[str], daemon: int | None = None) -> Callable[[], Run]:
        return lambda: measure(name, command, servers=servers, daemon=daemon, home=work)

    weightyard = [*_WEIGHTYARD, "pull", image, "--root", str(target)]
    skopeo = [program("skopeo"), "--policy", str(policy), "copy", "--src-tls-verify=false",
              f"docker://{image}", f"dir:{target}"]  # fmt: skip
    oras = [sys.executable, "-c", ORAS, f"{image}-modelpack", str(target)]
    contenders = {
        "weightyard": run("weightyard", weightyard),
        "skopeo": run("skopeo", skopeo),
        "oras": run("oras", oras),
    }
    if containerd is not None:
        address = ["--address", str(containerd.address)]
        ctr = [program("ctr"), *address, "images", "pull", "--plain-http", image]
        contenders["ctr"] = run("ctr", ctr, containerd._process.pid)
    if hub is not None:
        tool = str(Path(sys.executable).with_name("hf"))
        hf = [tool, "download", REPOSITORY, "--local-dir", str(target)]
        from_hub = {"HF_ENDPOINT": hub.url, "HF_HOME": str(work / "hf"), "HF_HUB_DISABLE_XET": "1"}
        contenders["hf"] = lambda: measure(
            "hf", hf, servers=[], daemon=None, home=work, environment=from_hub
        )
    return contenders


def published(
    registry: DockerRegistry,
    work: Path,
    gigabytes: float,
    *,
    shard_gigabytes: float,
    hub: Hub | None = None,
) -> tuple[str, int]:
    """Publishes a synthetic model in the registry, and on the Hub if there is one; returns its image and its bytes.

    The Hub serves the files in place, so they are kept; otherwise they are deleted.
    """
    checkpoint = synthetic_checkpoint(
        work / "checkpoint",
        total_bytes=int(gigabytes * 1e9),
        shard_bytes=int(shard_gigabytes * 1e9),
    )
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    image = f"{registry.host}/{REPOSITORY}:v1"
    build = [*_WEIGHTYARD, "build", str(checkpoint), "--to", image]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    if hub is None:
        shutil.rmtree(checkpoint)
    else:
        hub.add(REPOSITORY, checkpoint)
    return image, size


def blobs(registry: DockerRegistry, image: str) -> tuple[tuple[str, int], ...]:
    """The image's layers: URL and bytes of each."""
    reference = parse_image(image)
    if not isinstance(reference, RegistryReference):
        raise SystemExit(f"{image} is in no registry")
    resolved = resolve_model(open_reader(reference, Access()), reference.name)
    base = f"{registry.url}/v2/{reference.repository}/blobs"
    return tuple((f"{base}/{layer.digest}", layer.size) for layer in resolved.layers)


def report(
    runs: Sequence[Run], parts: Sequence[tuple[Parts, Parts]], size: int
) -> tuple[Summary, list[str]]:
    """Prints medians by program and the ratios with targets; returns the summary and the missed targets."""
    gigabytes = size / 1e9
    walls: dict[str, float] = {}
    costs: dict[str, float] = {}
    print(f"\n{'':12} {'wall s':>8} {'sync s':>8} {'CPU s/GB':>9} {'server':>8} {'RSS MB':>8}")
    for name in dict.fromkeys(run.program for run in runs):
        own = [run for run in runs if run.program == name]
        wall, sync, cpu, server, rss = (
            statistics.median(getattr(run, field) for run in own)
            for field in ("wall", "sync", "cpu", "server_cpu", "rss_mb")
        )
        walls[name], costs[name] = wall, cpu / gigabytes
        print(
            f"{name:12} {wall:8.2f} {sync:8.2f} {costs[name]:9.2f} {server / gigabytes:8.2f} {rss:8.0f}"
        )
    ratios = {name: wall / walls["weightyard"] for name, wall in walls.items()}
    print("times as long as weightyard: " + ", ".join(f"{n} {r:.2f}" for n, r in ratios.items()))
    works = [run.work for run in runs if run.program == "weightyard"]
    work = statistics.median(works) / gigabytes
    print(f"\nparts, CPU s/GB {'at once':>8} {'alone':>8}")
    for field in fields(Parts):
        at_once, alone = (
            statistics.median(getattr(p, field.name) for p in each)
            for each in zip(*parts, strict=True)
        )
        print(
            f"  {field.name + (', s/GB' if field.name == 'disk' else ''):13} {at_once:8.2f} {alone:8.2f}"
        )
    bound, idle_bound = (
        statistics.median(p.bound(available_cores()) for p in each)
        for each in zip(*parts, strict=True)
    )
    # The pull's own seconds: the bound doesn't include an interpreter's start.
    reached = bound / work
    print(
        f"bound {bound:.2f} s/GB on {available_cores()} cores; weightyard {work:.2f}: {reached:.2f} of it"
        f" ({idle_bound / work:.2f} of what the parts alone would give)"
    )
    missed = []
    if reached < LEAST_OF_BOUND:
        missed.append(f"{reached:.2f} of the bound, below {LEAST_OF_BOUND}")
    for name in ("skopeo", "ctr", "hf"):
        if costs.get(name, costs["weightyard"]) < costs["weightyard"]:
            missed.append(f"{name} takes {costs[name]:.2f} CPU s/GB, less than weightyard")
    summary: Summary = {"size": size, "walls": walls, "cpu": costs, "ratios": ratios}
    return {**summary, "bound": bound, "alone": idle_bound, "reached": reached}, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shard-gigabytes", type=float, default=0.5)
    parser.add_argument("--only", nargs="*", default=[], help="these programs beside weightyard")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-pull-")))
        room_for(work, int(options.gigabytes * 6e9))
        registry = stack.enter_context(DockerRegistry())
        wanted = options.only or ["skopeo", "oras", "ctr", "hf"]
        # The Hub keeps a second copy of the model in memory, so it runs only when it is needed.
        containerd = stack.enter_context(Containerd()) if "ctr" in wanted else None
        hub = stack.enter_context(Hub()) if "hf" in wanted else None
        image, size = published(
            registry, work, options.gigabytes, shard_gigabytes=options.shard_gigabytes, hub=hub
        )
        task = Task(blobs(registry, image), work / "part")
        able = peers(registry, containerd, hub, image, work)
        contenders = {name: able[name] for name in ("weightyard", *wanted)}
        runs: list[Run] = []
        parts: list[tuple[Parts, Parts]] = []

        def once(name: str) -> Run | tuple[Parts, Parts]:
            os.sync()
            if name == "parts":
                return measure_parts(task, lambda: serving([registry._process.pid]))
            run = contenders[name]()
            shutil.rmtree(work / "out", ignore_errors=True)
            if name == "ctr" and containerd is not None:
                containerd.remove(image)
            return run

        for number in range(options.rounds):
            order = [*contenders, "parts"]
            for name in order if number % 2 else reversed(order):
                once(name)
                match once(name):
                    case Run() as run:
                        runs.append(run)
                        print(json.dumps(asdict(run)), flush=True)
                    case measured:
                        parts.append(measured)
        summary, missed = report(runs, parts, size)
        if options.json:
            document = {
                **summary,
                "runs": [asdict(run) for run in runs],
                "parts": [[asdict(each) for each in pair] for pair in parts],
            }
            options.json.write_text(json.dumps(document, indent=2))
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
