"""A cluster served over HTTP from a thread of its own, for programs that block; with a controller where asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from cache_agent.api.kube.kube_client import KubeClient
from tests.workspace import samples
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.simulation import Cluster
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.cluster.watches import Watches
from workspace.controller.node_caches.cached_model_controller import CacheRunner
from workspace.controller.process.health_server import Liveness
from workspace.controller.runner import Runner
from workspace.render.release import ResolvedImages
from workspace.render.routing import SystemSettings
from workspace.schema import Workspace


def point_kubectl_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in for kubectl, which lies beside this file, before any other.

    It is run by a python3 of the machine, and by the tests' own where there is none.
    """
    monkeypatch.setenv("KUBE_SERVER", url)
    places = (Path(__file__).parent, os.environ["PATH"], Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, places)))


async def resolve(workspace: Workspace) -> ResolvedImages:
    """The tests' registry: every image name has its own digest."""
    return samples.resolved(workspace, samples.pinned(workspace.spec.model.image or ""))


async def control(
    client: KubeClient, runner: Runner | None = None, caching: CacheRunner | None = None
) -> None:
    """A controller's work without leader election, until cancelled."""
    api = KubernetesApi(client)
    runner, caching = runner or make_runner(api), caching or CacheRunner(api)
    watches = Watches(
        client, workspaces=runner, cached_models=caching, liveness=Liveness(time.monotonic),
        present=runner.kind_present,
    )  # fmt: skip
    async with asyncio.TaskGroup() as group:
        group.create_task(watches.run())
        await watches.synced()
        group.create_task(runner.run())
        group.create_task(caching.run())


def make_runner(api: KubernetesApi) -> Runner:
    return Runner(api=api, cache=WatchCache(), resolver=resolve, environment=SystemSettings())


class ServedCluster:
    """The context gives the address. `alive` runs a controller and lets the cluster step."""

    def __init__(self, cluster: Cluster, *, alive: bool = False) -> None:
        self._cluster = cluster
        self._alive = alive
        self._up = threading.Event()

    def __enter__(self) -> str:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        self._up.wait()
        return self._url

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with HttpApi(self._cluster.api, plain=True) as http:
            self._url = http.url
            self._up.set()
            if self._alive:
                await self._live(http)
            await self._stop.wait()

    async def _live(self, http: HttpApi) -> None:
        async with http.client() as client:
            working = asyncio.create_task(control(client))
            while not self._stop.is_set():
                self._cluster.step()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await self._stop.wait()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
