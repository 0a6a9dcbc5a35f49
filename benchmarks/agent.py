"""The cost of an agent: time to open a large store, memory and CPU when idle, memory added by a pull.

    .venv/bin/python -m benchmarks.agent --files 100000 --gigabytes 2 --idle 60

Opening the store is compared with `find` listing the same names. An idle agent is measured standalone, and with
everything enabled: all servers, the CSI driver, peers, and a cluster whose desired models it follows and holds. Fails
when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import yaml

from benchmarks.prewarming import kubeconfig
from benchmarks.pull import cpu_of, published
from cache_agent.api.control_client import AgentClient
from cache_agent.api.wire import PullBody
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.space import SpaceLimits
from cache_agent.store.store import Store, StoreOptions
from cache_agent.store.values import StoredFile, StoredModel
from modelimage.digest import Digest
from tests.cache_agent.prewarm.documents import cached_model
from tests.cache_agent.servers.published import publish_model
from tests.servers.process import child_environment, program
from tests.servers.registry import DockerRegistry
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi

MOST_OPEN_SECONDS: Final = 2.0
MOST_IDLE_MB: Final = {"standalone": 80.0, "everything": 120.0}
MOST_IDLE_CPU: Final = 0.005
MOST_PULL_MB: Final = 150.0
NODE: Final = "n1"
_FILES_PER_MODEL: Final = 100
_DESIRED_MODELS: Final = 100
_LOCAL_MODELS: Final = 10
_START_SECONDS: Final = 30.0
_STEP_SECONDS: Final = 0.1


def fill(root: Path, count: int) -> None:
    """Fills a store with `count` tiny files in models of a hundred, in the layout that pulls leave."""
    options = StoreOptions(SpaceLimits(), time.time)
    Store(root, options).close()
    paths, ledger = StorePaths(root), Ledger(StorePaths(root))
    with ledger.transaction():
        for number in range(0, count, _FILES_PER_MODEL):
            files = [_put_file(paths, ledger, n) for n in range(number, number + _FILES_PER_MODEL)]
            _put_model(paths, ledger, files, number)
    ledger.close()


def _put_file(paths: StorePaths, ledger: Ledger, number: int) -> Digest:
    data = b"%d" % number
    digest = Digest.of(data)
    path = paths.file(digest)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o444)
    chunk = hashlib.sha256(data).hexdigest()  # as long as a BLAKE3
    ledger.put_file(StoredFile(digest, len(data), (chunk,), 1.0, path.stat().st_mtime_ns))
    return digest


def _put_model(paths: StorePaths, ledger: Ledger, files: Sequence[Digest], number: int) -> None:
    key = Digest.of(b"model %d" % number)
    directory = paths.model(key)
    directory.mkdir()
    for index, digest in enumerate(files):
        (directory / f"{index}").hardlink_to(paths.file(digest))
    row = StoredModel(
        key, directory, "bf16", f"reg.test/m:{number}", 1, len(files), 1.0, 1.0, 1.0, 1.0
    )
    ledger.put_model(row, _Listed(files))  # type: ignore[arg-type]


class _Listed:
    """The part of a record that the ledger reads: the files' digests."""

    def __init__(self, digests: Sequence[Digest]) -> None:
        self.files = [self._File(digest) for digest in digests]

    class _File:
        def __init__(self, digest: Digest) -> None:
            self.digest = digest


def open_seconds(root: Path, rounds: int) -> tuple[float, float]:
    """Median seconds of opening the store, and of `find` listing its files."""
    ours, peers = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        Store(root, StoreOptions(SpaceLimits(), time.time)).close()
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        find = [program("find"), str(root / "files"), str(root / "models"), "-type", "f"]
        subprocess.run(find, check=True, stdout=subprocess.DEVNULL)
        peers.append(time.perf_counter() - started)
    return statistics.median(ours), statistics.median(peers)


@contextmanager
def agent(root: Path, *options: str) -> Iterator[tuple[int, AgentClient]]:
    """Runs an agent; yields its pid and a client."""
    command = [sys.executable, "-m", "weightyard.cli", "--json", "agent", "--root", str(root)]
    with (root.parent / f"{root.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options], stderr=log, env=child_environment(root.parent)
        )
        try:
            client = None
            while client is None:
                if process.poll() is not None:
                    raise SystemExit(Path(log.name).read_text())
                time.sleep(0.05)
                client = AgentClient.from_socket(StorePaths(root).socket)
            yield process.pid, client
        finally:
            process.terminate()
            process.wait()


def megabytes(pid: int, field: str) -> float:
    """VmRSS or VmHWM of a process, in 10^6 bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024 / 1e6


def idle(root: Path, seconds: float, desired_models: int, *options: str) -> tuple[float, float]:
    """Resident megabytes and share of a core of an idle agent that holds `desired_models` desired models."""
    with agent(root, *options) as (pid, client):
        _wait_for_models(client, desired_models)
        # Work after the start must not count as idle.
        time.sleep(1)
        before = cpu_of(pid)
        time.sleep(seconds)
        return megabytes(pid, "VmRSS"), (cpu_of(pid) - before) / seconds


def _wait_for_models(client: AgentClient, count: int) -> None:
    for _ in range(int(_START_SECONDS / _STEP_SECONDS)):
        wanted = client.status().status.desired
        if len(wanted) == count and all(each.state == "Ready" for each in wanted):
            return
        time.sleep(_STEP_SECONDS)
    raise SystemExit(f"of {count} wanted models not all are ready: {wanted}")


def pull_adds(root: Path, image: str) -> float:
    """Megabytes between the peak of a pull and the idle agent."""
    with agent(root) as (pid, client):
        client.models()
        before = megabytes(pid, "VmRSS")
        for _ in client.pull(PullBody(image=image)):
            pass
        return megabytes(pid, "VmHWM") - before


@contextmanager
def cluster(image: str) -> Iterator[str]:
    """The URL of an API server with this node, and CachedModels of an image for it and for others."""
    server = FakeApi()
    labels = {"pool": "here"}
    server.create(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels}}
    )
    for number in range(_DESIRED_MODELS):
        pool = "here" if number < _LOCAL_MODELS else "there"
        server.create(cached_model(f"m{number}", image, nodeSelector={"pool": pool}))
    with ThreadPoolExecutor(1) as thread:
        started: Future[tuple[str, Callable[[], object]]] = Future()
        served = thread.submit(asyncio.run, _serve(server, started))
        url, stop = started.result(_START_SECONDS)
        try:
            yield url
        finally:
            stop()
            served.result(_START_SECONDS)


async def _serve(server: FakeApi, started: Future[tuple[str, Callable[[], object]]]) -> None:
    """Serves until the function passed to `started` is called, from any thread."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    async with HttpApi(server, plain=True) as http:
        started.set_result((http.url, lambda: loop.call_soon_threadsafe(end.set)))
        await end.wait()


def everything(work: Path, api: str) -> list[str]:
    """Options that enable everything: all servers, the CSI driver, peers by DNS, and a cluster's desired models."""
    (work / "kubelet").mkdir()
    (work / "key").write_text("a key that only this benchmark's nodes share\n")
    settings = {
        "servers": {
            **dict.fromkeys(("mirror", "hub", "observe"), "127.0.0.1:0"),
            "registries": ["127.0.0.1"],
            "csi": {"kubelet": str(work / "kubelet"), "mounter": str(work / "mounter.sock")},
        },
        "peers": {
            "listen": "127.0.0.1:0",
            "advertise": "127.0.0.1:7946",
            "dns": "localhost:7946",
            "key_file": str(work / "key"),
        },
        "prewarm": {"node": NODE, "kubeconfig": str(kubeconfig(work / "kubeconfig", api))},
    }
    (work / "everything.yaml").write_text(yaml.safe_dump(settings))
    return ["--config", str(work / "everything.yaml")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--idle", type=float, default=60.0, help="seconds to watch an idle agent")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    missed: list[str] = []
    numbers: dict[str, float] = {}

    def note(name: str, value: float, most: float, unit: str) -> None:
        numbers[name] = value
        print(f"{name:34} {value:9.3f} {unit:9} (at most {most:g})", flush=True)
        if value > most:
            missed.append(f"{name}: {value:.3f} {unit}, above {most:g}")

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-agent-")))
        fill(work / "large", options.files)
        ours, peer = open_seconds(work / "large", options.rounds)
        note(f"open a store of {options.files} files", ours, MOST_OPEN_SECONDS, "s")
        print(f"{'find over the same names':34} {peer:9.3f} s")
        registry = stack.enter_context(DockerRegistry())
        wanted = publish_model(f"{registry.host}/idle/wanted:v1").image
        every = everything(work, stack.enter_context(cluster(wanted)))
        for name, desired_models, extra in (
            ("standalone", 0, []),
            ("everything", _LOCAL_MODELS, every),
        ):
            resident, cpu = idle(work / name, options.idle, desired_models, *extra)
            note(f"idle, {name}: resident", resident, MOST_IDLE_MB[name], "MB")
            note(f"idle, {name}: share of a core", cpu, MOST_IDLE_CPU, "")
        image, _ = published(registry, work, options.gigabytes, shard_gigabytes=0.5)
        added = pull_adds(work / "pulling", image)
        note(f"a pull of {options.gigabytes:g} GB adds", added, MOST_PULL_MB, "MB")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2))
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
