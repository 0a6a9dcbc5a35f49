"""A cluster served over HTTP from a thread of its own, for programs that block; with a controller where asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from pathlib import Path
from types import TracebackType

import aiohttp
import pytest

from tests.workspace import samples
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.simulation import Cluster
from workspace.controller.cached_model_controller import CacheRunner
from workspace.controller.handlers import make_registry, watch
from workspace.controller.kube_api import KubernetesApi
from workspace.controller.object_cache import WatchCache
from workspace.controller.runner import Runner
from workspace.render.kubernetes import SystemSettings
from workspace.render.release import ResolvedImages
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with HttpApi(self._cluster.api) as http:
            self._url = http.url
            self._up.set()
            if self._alive:
                await self._live(http)
            await self._stop.wait()

    async def _live(self, http: HttpApi) -> None:
        async with aiohttp.ClientSession() as session:
            api = KubernetesApi(session, http.connection)
            runner = Runner(
                api=api, cache=WatchCache(), resolver=resolve, environment=SystemSettings()
            )
            caching = CacheRunner(api)
            registry = make_registry(runner, caching, with_keda=False)
            watching = asyncio.create_task(
                watch(registry, stop=self._stop, connection=http.connection)
            )
            working = asyncio.gather(runner.run(), caching.run())
            while not self._stop.is_set():
                self._cluster.step()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await self._stop.wait()
            working.cancel()
            http.break_watches()
            # kopf would wait 5 s for all tasks of its loop, the server's among them.
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)
