"""What being observed costs a controller's memory: with its page read, scraped and traced, beside one that is not.

Two controllers, the real program in its own process, one after the other, watch a cluster of the same size: nodes whose
agents report on models, and Workspaces with a ready server and the timeline of its start. Some nodes report news each
second to both. Of one the page is read over its stream, the metrics are scraped as OpenMetrics each second, and spans
go to a collector. Compared is the resident memory at the end, after the same time. Fails when it is larger by 30 MB.

    python -m benchmarks.observed_controller [--nodes 1000] [--workspaces 1000] [--models 20] [--seconds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from benchmarks.rollouts import kubeconfig, moved, peak_mb
from tests.servers.otlp import Collector
from tests.workspace.controller import caches
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster

Json = dict[str, Any]
MOST_MB: Final = 30.0
_READER: Final = "a-reader-of-the-page"
_CHANGES: Final = 5  # nodes that report news each second
_SCRAPE_SECONDS: Final = 1.0
_PLACES: Final = re.compile(r"\b(health|page) on 127\.0\.0\.1:(\d+)")
_KINDS: Final = (
    "ControllerRevision", "Deployment", "Service", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Pod",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """The cluster's size."""

    nodes: int
    workspaces: int
    models: int


@dataclass(frozen=True, slots=True)
class Memory:
    """A controller's resident memory at the end and at its peak, in MB."""

    resident: float
    peak: float


def main() -> int:
    """Measures both and compares; 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--workspaces", type=int, default=1000)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    size = Size(given.nodes, given.workspaces, given.models)
    plain = measure(size, given.seconds, observed=False)
    seen = measure(size, given.seconds, observed=True)
    for name, each in (("plain", plain), ("observed", seen)):
        print(f"{name}: {each.resident:.0f} MB, {each.peak:.0f} MB at its peak", flush=True)
    grown = seen.resident - plain.resident
    print(f"being observed takes {grown:.0f} MB (limit {MOST_MB:.0f})")
    return int(grown > MOST_MB)


def measure(size: Size, seconds: float, *, observed: bool) -> Memory:
    """The memory of a controller after some seconds of a cluster's life."""
    ours, theirs = Pipe()
    # In its own process: its memory isn't the controller's, and it has the other core.
    server = Process(target=_serve, args=(theirs, size))
    server.start()
    try:
        url, token, authority = ours.recv()
        with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
            config = Path(directory) / "kubeconfig"
            config.write_text(kubeconfig(url, token, authority))
            environment = {"KUBECONFIG": str(config)}
            if observed:
                environment |= stack.enter_context(Collector()).environment
            process, places = stack.enter_context(_controller(environment, page=observed))
            _until_started(ours, size)
            if observed:
                stack.enter_context(_working(lambda: _scrape(places["health"])))
                stack.enter_context(_working(lambda: _read(places["page"])))
            ours.send("live")
            time.sleep(seconds)
            return Memory(_resident_mb(process.pid), peak_mb(process.pid))
    finally:
        server.terminate()
        server.join()


@contextmanager
def _controller(
    environment: Mapping[str, str], *, page: bool
) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """A controller that leads, and the ports of its servers by name."""
    command = [sys.executable, "-m", "weightyard", "controller", "--health", "127.0.0.1:0"]
    command += ["--page", "127.0.0.1:0"] if page else []
    with subprocess.Popen(
        command, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            places: dict[str, int] = {}
            for line in process.stderr:
                places |= {name: int(port) for name, port in _PLACES.findall(line)}
                if "leading" in line:
                    break
            # What it logs from here on must not fill the pipe.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process, places
        finally:
            process.terminate()


def _scrape(port: int) -> None:
    """Reads the metrics once, then waits as long as a busy scraper does. Raises RuntimeError without traces."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if "openmetrics" not in (answer.getheader("Content-Type") or ""):
        raise RuntimeError("the controller isn't traced")
    time.sleep(_SCRAPE_SECONDS)


def _read(port: int) -> None:
    """Reads the page's stream to its end. Raises RuntimeError when it isn't let in."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/page/events", headers={"Authorization": f"Bearer {_READER}"})
    answer = connection.getresponse()
    if answer.status != http.HTTPStatus.OK:
        raise RuntimeError(f"the page's stream answers {answer.status}")
    while answer.read1():
        pass
    connection.close()


class _Worker:
    """Does something again and again in a thread until left, and fails as it failed."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while True:
                self._work()
        # Told when the measurement ends: without its part, the numbers mean nothing.
        except Exception as error:  # noqa: BLE001
            self.failure = error


@contextmanager
def _working(work: Callable[[], None]) -> Iterator[None]:
    worker = _Worker(work)
    threading.Thread(target=worker.run, daemon=True).start()
    yield
    if worker.failure is not None:
        raise worker.failure


def _serve(pipe: Connection, size: Size) -> None:
    asyncio.run(_answer(pipe, _cluster(size), size))


async def _answer(pipe: Connection, api: FakeApi, size: Size) -> None:
    """Serves the cluster, and tells how many starts were followed; once told to, there is news."""
    async with HttpApi(api) as http_api:
        http_api.users = {_READER: "ann"}
        http_api.readers = {"ann": {"nodecaches", "workspaces"}}
        pipe.send((http_api.url, http_api.callers.token, http_api.authority))
        async with asyncio.TaskGroup() as group:
            while True:
                if await asyncio.to_thread(pipe.recv) == "live":
                    group.create_task(_change(api, size))
                else:
                    found = api.list("Workspace")
                    pipe.send(sum("startup" in each.get("status", {}) for each in found))


async def _change(api: FakeApi, size: Size) -> None:
    """Some nodes report news each second, until cancelled."""
    number = 0
    while True:
        for _ in range(_CHANGES):
            number += 1
            report = caches.report("m0", "Fetching", bytesDone=number, bytesTotal=1 << 40)
            name = f"n{number % size.nodes}"
            api.update("NodeCache", "", name, partial(_report, report=report))
        await asyncio.sleep(1)


def _report(document: Json, *, report: Json) -> None:
    document["status"]["desired"][0] = report


def _cluster(size: Size) -> FakeApi:
    """Copies of one settled Workspace whose server's start can be followed, and nodes whose agents report."""
    cluster = Cluster()
    cluster.add_node("n0", gpus=8)
    cluster.create_workspace(replicas=1)
    cluster.settle()
    workspace = cluster.api.get("Workspace", NAMESPACE, NAME)
    objects = [each for kind in _KINDS for each in cluster.api.list(kind, NAMESPACE)]
    made = FakeApi()
    _add_nodes(made, cluster.api.get("Node", "", "n0"), size)
    for number in range(size.workspaces):
        namespace = f"ns{number}"
        uid = made.create(moved(workspace, namespace))["metadata"]["uid"]
        for each in objects:
            copied = json.loads(json.dumps(each).replace(workspace["metadata"]["uid"], uid))
            made.create(_started(moved(copied, namespace), f"n{number % size.nodes}"))
    return made


def _add_nodes(api: FakeApi, node: Json, size: Size) -> None:
    images = {f"m{number}": f"registry.example/m:{number}" for number in range(size.models)}
    for name, image in images.items():
        api.create(caches.cached_model(name, image))
    reports, held = tuple(map(caches.report, images)), tuple(map(caches.held, images.values()))
    for number in range(size.nodes):
        name = f"n{number}"
        api.create({**node, "metadata": {**node["metadata"], "name": name}})
        report = caches.node_cache(name, desired=reports, models=held)
        victims = [{"key": each["key"], "frees": 100} for each in held[:3]]
        report["status"]["nextVictims"] = victims
        api.create(report)


def _started(document: Json, node: str) -> Json:
    """A pod has the times of its start; everything else is as it was."""
    if document["kind"] == "Pod":
        document["spec"]["nodeName"] = node
        document["metadata"]["creationTimestamp"] = caches.NOW
        for each in document["status"]["conditions"]:
            each["lastTransitionTime"] = caches.NOW
        for each in document["status"]["containerStatuses"]:
            each["state"] = {"running": {"startedAt": caches.NOW}}
    return document


def _until_started(pipe: Connection, size: Size) -> None:
    """Waits until the controller has followed every server's start: all else was made before."""
    started = 0
    while started < size.workspaces:
        time.sleep(1)
        pipe.send("starts")
        started = pipe.recv()


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
