"""Credentials go through the controller and the activator, and are in nothing that they say or write.

Not in logs with tracebacks, spans, metrics, the page of the cluster, status, Events, or any object but the Secret; also
where a registry repeats in its error what it was sent.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import Iterator

import pytest

from modelimage import spans
from modelimage.access import Access
from modelimage.allowed_registries import AllowedRegistries
from tests.servers import process
from tests.servers.otlp import Collector
from tests.servers.repeating_registry import SIGNATURE, RepeatingRegistry
from tests.workspace.activator.engine import Engine
from tests.workspace.activator.test_proxy import QUICK, place
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.living import control
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_running import until
from weightyard.program_log import configure_log
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.cluster.secrets import NamespacedResolver
from workspace.controller.runner import Runner
from workspace.render.routing import SystemSettings
from workspace.render.trace_settings import TraceSettings

PASSWORD, API_KEY, OTEL = "pw-wonderland-5e1d", "sk-nobody-sees-this", "otel-nobody-sees"
AUTH = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
SECRETS = [PASSWORD, AUTH.rstrip("="), API_KEY, OTEL, SIGNATURE]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What programs log, all of it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_log("debug", "json", stream=stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)


def check(said: dict[str, str], *more: str) -> None:
    assert all(said.values()), [name for name, text in said.items() if not text]
    secrets = [*SECRETS, *more]
    assert [(name, each) for name, text in said.items() for each in secrets if each in text] == []


def cluster_of(registry: RepeatingRegistry) -> Cluster:
    cluster = Cluster()
    cluster.add_node("n1")
    config = {"auths": {registry.host: {"auth": AUTH}}}
    data = base64.b64encode(json.dumps(config).encode()).decode()
    cluster.api.create(
        {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull", "namespace": NAMESPACE},
            "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": data},
        }
    )  # fmt: skip
    model = {"image": f"{registry.host}/team/llama:v1", "pullSecret": "pull"}
    cluster.create_workspace(model=model)
    return cluster


async def reconcile(cluster: Cluster, registry: RepeatingRegistry, tracing: TraceSettings) -> str:
    """Run a controller until the Workspace's status has the registry's error; returns its metrics and its token."""
    async with HttpApi(cluster.api) as http, http.client() as client:
        api = KubernetesApi(client)
        access = Access(plain_http=frozenset({registry.host}))
        runner = Runner(
            api=api, cache=WatchCache(), environment=SystemSettings(tracing=tracing),
            resolver=NamespacedResolver(api, access, AllowedRegistries((registry.host,))),
        )  # fmt: skip
        task = asyncio.create_task(control(client, runner))
        try:
            await until(cluster, lambda: bool(registry.heard) and registry.host in shown(cluster))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return runner.metrics.exposition()[0].decode()


def shown(cluster: Cluster) -> str:
    return json.dumps(cluster.api.get("Workspace", NAMESPACE, NAME).get("status", {}))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("redirects", [False, True])
def test_the_controller_tells_no_credential(status: int, redirects: bool, log: io.StringIO) -> None:
    said: dict[str, str] = {}
    with RepeatingRegistry(status, redirects=redirects) as registry, Collector() as collector:
        cluster = cluster_of(registry)
        headers = f"authorization=Bearer%20{OTEL}"
        with (
            collector.named(OTEL_EXPORTER_OTLP_HEADERS=headers) as environ,
            spans.exporting(environ, service="controller"),
        ):
            settings = TraceSettings.of(environ)
            said["metrics"] = asyncio.run(reconcile(cluster, registry, settings))
        said["spans"] = "\n".join(map(str, collector.spans)) or "none"
    assert any(AUTH in each for each in registry.heard), "the registry got the credentials"
    objects = [each for (kind, *_), each in cluster.api.objects.items() if kind != "Secret"]
    said["objects"], said["status"] = json.dumps(objects), shown(cluster)
    said["log"] = log.getvalue()
    check(said)


def test_the_activator_tells_no_credential(log: io.StringIO) -> None:
    """Those of clients pass to the server, and into nothing else."""

    async def scenario() -> dict[str, str]:
        said = {}
        headers = {"Authorization": f"Bearer {API_KEY}", "X-Api-Key": API_KEY}
        async with place(QUICK) as (made, session):
            async with session.get("/activator/metrics") as answer:
                said["metrics before"] = await answer.text()
            await made.start_engine(Engine())
            async with session.get(f"/echo?api_key={API_KEY}", headers=headers) as answer:
                assert API_KEY in (await answer.json())["headers"]["authorization"]
            await made.stop_engines()
            made.upstreams[:] = [f"http://alice:{PASSWORD}@127.0.0.1:1"]
            asking = session.get(f"/v1/x?api_key={API_KEY}", headers=headers)
            task = asyncio.ensure_future(asking)
            await process.until(lambda: made.activator.gate.waiting == 1, what="waiting request")
            task.cancel()
            async with session.get("/activator/metrics") as answer:
                said["metrics"] = await answer.text()
        return said

    with Collector() as collector:
        with collector.named() as environ, spans.exporting(environ, service="activator"):
            said = asyncio.run(scenario())
        said["spans"] = "\n".join(map(str, collector.spans))
    said["log"] = log.getvalue()
    check(said)
