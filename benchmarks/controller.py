"""The controller with many Workspaces and nodes: duration and writes of a full resync, memory, and CPU at rest.

The API server is the tests' own, over HTTPS from its own process. The controller runs as in a cluster: its watches,
cache, queue and reconcile. What is measured of this process is the controller's, and the imports of the measurement.

In addition every node's agent reports some CachedModels: the controller labels the nodes and summarizes the models.

    python -m benchmarks.controller [--workspaces 1000] [--nodes 1000] [--models 20]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import ssl
import time
from functools import partial
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cache_agent.api.kube import connection as kube
from cache_agent.api.kube.kube_client import KubeClient
from tests.workspace import samples
from tests.workspace.controller import caches
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.cluster.watches import Watches
from workspace.controller.node_caches.cache_view import MODEL, NODE
from workspace.controller.node_caches.cached_model_controller import CacheRunner
from workspace.controller.process.health_server import Liveness
from workspace.controller.runner import Runner
from workspace.render.release import ResolvedImages
from workspace.render.routing import SystemSettings
from workspace.schema import Workspace

EDITS = 5
REST = 10.0  # seconds
LIMIT_MB = 512 * 2**20 / 1e6  # of memory, as the chart limits the controller's
Json = dict[str, Any]


def main() -> None:
    """Starts the server process, measures, and prints one line per number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspaces", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--models", type=int, default=20)
    given = parser.parse_args()
    ours, theirs = Pipe()
    # In its own process: its memory and CPU time aren't the controller's.
    server = Process(target=_serve, args=(theirs, given.workspaces, given.nodes, given.models))
    server.start()
    try:
        asyncio.run(_measure(ours, given.workspaces, given.nodes, given.models))
    finally:
        server.terminate()
        server.join()


def _serve(pipe: Connection, workspaces: int, nodes: int, models: int) -> None:
    asyncio.run(_answer(pipe, _cluster(workspaces, nodes, models)))


def _cluster(workspaces: int, nodes: int, models: int) -> FakeApi:
    api = FakeApi()
    labels = {f"example.com/label-{number}": "x" * 20 for number in range(20)}
    for number in range(nodes):
        status = {
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        metadata = {"name": f"n{number}", "labels": labels}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}}
        api.create({**node, "status": status})
    images = {f"m{number}": f"registry.example/m:{number}" for number in range(models)}
    for name, image in images.items():
        api.create(caches.cached_model(name, image))
    reports, held = tuple(map(caches.report, images)), tuple(map(caches.held, images.values()))
    for number in range(nodes):
        api.create(caches.node_cache(f"n{number}", desired=reports, models=held))
    for number in range(workspaces):
        api.create(samples.document(f"w{number}", namespace=f"ns{number % 100}", replicas=1))
    return api


async def _answer(pipe: Connection, api: FakeApi) -> None:
    """Serves HTTP, and executes the measuring process's requests from the pipe."""
    async with HttpApi(api) as http:
        pipe.send((http.url, http.callers.token, http.authority))
        while True:
            asked = await asyncio.to_thread(pipe.recv)
            if asked == "writes":
                pipe.send(http.writes())
            else:
                change = {"tenancy": {"quota": {"pods": str(asked)}}}
                api.update("Workspace", "ns0", "w0", partial(_change, new=change))
                pipe.send(time.time())


def _change(document: Json, *, new: Json) -> None:
    document["spec"].update(new)


async def _measure(pipe: Connection, workspaces: int, nodes: int, models: int) -> None:
    url, token, authority = await asyncio.to_thread(pipe.recv)
    connection = kube.Connection(url, kube.TokenCredentials(kube.make_context(authority), token))
    async with KubeClient(connection, role="controller") as client:
        api = KubernetesApi(client)
        runner = Runner(
            api=api, cache=WatchCache(), resolver=_resolve, environment=SystemSettings()
        )
        caching = CacheRunner(api)
        watches = Watches(
            client, workspaces=runner, cached_models=caching, liveness=Liveness(time.monotonic),
            present=runner.kind_present,
        )  # fmt: skip
        tasks = [asyncio.create_task(watches.run())]
        await watches.synced()
        await _until(lambda: len(runner.cache.workspaces()) == workspaces)
        await _until(lambda: len(runner.cache.nodes()) == nodes)
        await _until(lambda: len(caching.view.models) == models)
        await _until(lambda: len(caching.view.caches) == nodes)
        tasks.append(asyncio.create_task(caching.run()))
        await _cache(caching, pipe)
        start, used = time.monotonic(), time.process_time()
        tasks.append(asyncio.create_task(runner.run()))
        await asyncio.sleep(0)
        await _at_rest(runner)
        print(f"first sync, everything made: {time.monotonic() - start:.1f} s")
        each = (time.process_time() - used) / workspaces * 1000
        print(f"CPU of the first sync: {each:.0f} ms for each Workspace")
        await _resync(runner, pipe)
        await _edit(runner, pipe)
        used = time.process_time()
        await asyncio.sleep(REST)
        print(f"CPU at rest: {(time.process_time() - used) / REST:.2%} of a core")
        print(f"memory: {_resident_mb():.0f} MB")
        peak = _peak_mb()
        print(f"memory at its peak: {peak:.0f} MB, {peak / LIMIT_MB:.0%} of the chart's limit")
        contexts = sum(isinstance(each, ssl.SSLContext) for each in gc.get_objects())
        print(f"TLS contexts: {contexts}")
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


async def _cache(caching: CacheRunner, pipe: Connection) -> None:
    """Labels every node and summarizes every model, then does the same again."""
    for again in ("first", "again"):
        before, start = await _ask(pipe, "writes"), time.monotonic()
        for key in [(MODEL, m) for m in caching.view.models] + [
            (NODE, n) for n in caching.view.nodes
        ]:
            caching.queue.add(key)
        await _at_rest(caching)
        written = await _ask(pipe, "writes") - before
        print(f"cache, {again}: {time.monotonic() - start:.1f} s, {written} writes")


async def _resync(runner: Runner, pipe: Connection) -> None:
    before = await _ask(pipe, "writes")
    start = time.monotonic()
    for key in runner.cache.workspaces():
        runner.queue.add(key)
    await _at_rest(runner)
    print(f"full resync: {time.monotonic() - start:.1f} s")
    print(f"writes in it: {await _ask(pipe, 'writes') - before}")


async def _edit(runner: Runner, pipe: Connection) -> None:
    """Measures the time from an edit of a Workspace to the watch event of its changed child."""
    seconds = []
    for number in range(1, EDITS + 1):
        at = await _ask(pipe, number)

        def applied(wanted: str = str(number)) -> bool:
            found = runner.cache.objects(("ns0", "w0"))
            return any(
                e["kind"] == "ResourceQuota" and e["spec"]["hard"]["pods"] == wanted for e in found
            )

        await _until(applied)
        seconds.append(time.time() - at)
        await _at_rest(runner)
    print(f"edit to applied child: {min(seconds) * 1000:.0f} to {max(seconds) * 1000:.0f} ms")


async def _at_rest(runner: Runner | CacheRunner) -> None:
    """Waits until the queue is empty and stays so for half a second."""
    while len(runner.queue):
        await _until(lambda: not len(runner.queue))
        await asyncio.sleep(0.5)


async def _until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - the condition depends on watches, which set no event
        await asyncio.sleep(0.005)


async def _ask(pipe: Connection, what: object) -> Any:
    pipe.send(what)
    return await asyncio.to_thread(pipe.recv)


async def _resolve(workspace: Workspace) -> ResolvedImages:
    return samples.resolved(workspace, samples.pinned(workspace.spec.model.image or ""))


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _peak_mb() -> float:
    """The most memory that this process has held at a time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) * 1024 / 1e6


if __name__ == "__main__":
    main()
