"""The controller's spans are part of the trace of the version that it works on; its pods have that trace too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from modelimage import spans, trace_headers
from tests.servers.otlp import Collector, attributes
from tests.workspace import samples
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.living import control, resolve
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_running import is_ready, prepared, until
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.loops.scaling_loop import ScalingLoop
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.controller.runner import Runner
from workspace.render import names
from workspace.render.kubernetes import activator_deployment
from workspace.render.network_policies import activator_policy, network_policy
from workspace.render.routing import DIRECT, SystemSettings
from workspace.render.trace_settings import TraceSettings, with_tracing
from workspace.scaler import Load
from workspace.schema import Workspace

Json = dict[str, Any]
COLLECTOR = "http://collector.monitoring:4317"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
MONITORING = {"kubernetes.io/metadata.name": "monitoring"}


@asynccontextmanager
async def working(cluster: Cluster, tracing: TraceSettings) -> AsyncIterator[Runner]:
    """A controller at work."""
    async with HttpApi(cluster.api) as http, http.client() as client:
        runner = Runner(
            api=KubernetesApi(client), cache=WatchCache(), resolver=resolve,
            environment=SystemSettings(tracing=tracing),
        )  # fmt: skip
        task = asyncio.create_task(control(client, runner))
        try:
            yield runner
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def serve_workspace(cluster: Cluster, tracing: TraceSettings) -> None:
    """Run a controller until the Workspace is served."""
    async with working(cluster, tracing) as runner:
        await until(cluster, lambda: is_ready(cluster) and not len(runner.queue))


async def begin_rollout(cluster: Cluster, tracing: TraceSettings) -> None:
    """Run a controller until a rollout is under way."""
    async with working(cluster, tracing):
        await until(cluster, lambda: rollout_before(workspace_in(cluster)) is not None)


def workspace_in(cluster: Cluster) -> Json:
    return cluster.api.get("Workspace", NAMESPACE, NAME)


def template_of(cluster: Cluster) -> Json:
    found: Json = cluster.api.get("Deployment", NAMESPACE, NAME)["spec"]["template"]
    return found


def test_a_version_has_one_trace_in_controller_volume_and_server() -> None:
    cluster = prepared(replicas=1)
    with Collector() as collector:
        with collector.named() as environ, spans.exporting(environ, service="controller"):
            settings = TraceSettings.of(environ, servers=COLLECTOR)
            asyncio.run(serve_workspace(cluster, settings))
        by_name = collector.by_name()
    template = template_of(cluster)
    trace = template["metadata"]["annotations"][names.TRACE]
    server = template["spec"]["containers"][0]
    assert {"name": "TRACEPARENT", "value": trace} in server["env"]
    assert COLLECTOR in server["args"]
    volume = next(each["csi"] for each in template["spec"]["volumes"] if "csi" in each)
    assert volume["volumeAttributes"]["traceparent"] == trace
    assert {span.trace_id.hex() for span in collector.spans} == {trace_headers.trace_id(trace)}
    assert {"reconcile", "apply Deployment", "pre-warm"} <= set(by_name)
    children = [span for span in collector.spans if span.name != "reconcile"]
    passes = {span.span_id for span in collector.spans if span.name == "reconcile"}
    assert {span.parent_span_id for span in children} <= passes
    assert attributes(by_name["pre-warm"])["node"] in ("n1", "n2")
    assert attributes(by_name["reconcile"])["workspace"] == f"{NAMESPACE}/{NAME}"


def test_a_pass_that_writes_nothing_has_no_span() -> None:
    cluster = prepared(replicas=1)

    async def scenario() -> int:
        provider: Any = spans.provider()
        async with working(cluster, TraceSettings(servers=COLLECTOR)) as runner:
            await until(cluster, lambda: is_ready(cluster) and not len(runner.queue))
            provider.force_flush()
            before = len(collector.spans)
            await runner.reconcile((NAMESPACE, NAME))
            provider.force_flush()
        return before

    with Collector() as collector:
        with collector.named() as environ, spans.exporting(environ, service="controller"):
            before = asyncio.run(scenario())
        assert len(collector.spans) == before > 0


def test_an_operators_tracing_restarts_no_server() -> None:
    """Versions that exist keep their template: they are traced from the next one on."""
    cluster = prepared(replicas=1)
    asyncio.run(serve_workspace(cluster, TraceSettings()))
    before = template_of(cluster)
    assert names.TRACE not in before["metadata"]["annotations"]
    asyncio.run(serve_workspace(cluster, TraceSettings(servers=COLLECTOR)))
    assert template_of(cluster) == before


def test_the_steps_of_a_rollout_are_spans() -> None:
    canary = {"strategy": "canary", "steps": [{"weight": 50}, {"pause": {}}]}
    cluster = prepared(replicas=2, rollout=canary)
    with Collector() as collector:
        with collector.named() as environ, spans.exporting(environ, service="controller"):
            settings = TraceSettings.of(environ)
            asyncio.run(serve_workspace(cluster, settings))
            cluster.change_spec(model={"image": "registry.example/team/llama:v2"})
            asyncio.run(begin_rollout(cluster, settings))
        steps = [span for span in collector.spans if span.name == "rollout step"]
    told = attributes(steps[0])
    assert (told["phase"], told["weight"]) == ("Progressing", 50)
    stable = trace_headers.trace_id(template_of(cluster)["metadata"]["annotations"][names.TRACE])
    assert steps[0].trace_id.hex() != stable, "it is the new version's"


@pytest.mark.parametrize("waking", [PARENT, ""])
def test_scaling_is_part_of_the_request_that_wakes(
    waking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, of the version. The request's trace is linked to the version's, where the start is."""
    version = f"00-{'ab' * 16}-{'cd' * 8}-01"

    async def read(_session: object, _targets: object) -> tuple[Load, None]:
        return Load(0, 0, (), held=1, trace=waking), None

    async def scenario() -> None:
        cache = WatchCache()
        document = samples.document(NAME, namespace=NAMESPACE, scale={"min": 0, "max": 2})
        cache.put({**document, "metadata": {**document["metadata"], "uid": NAME}})
        api: KubernetesApi = None  # type: ignore[assignment]  # nothing is written
        runner = Runner(api=api, cache=cache, resolver=resolve, environment=SystemSettings())
        runner.traces[NAMESPACE, NAME] = version
        session: aiohttp.ClientSession = None  # type: ignore[assignment]  # nothing is read
        await ScalingLoop(runner, session).scale((NAMESPACE, NAME))

    async def tell(*_: object) -> None:
        """No event is written."""

    monkeypatch.setattr("workspace.controller.loops.scaling_loop.read_load", read)
    monkeypatch.setattr(ScalingLoop, "_tell", tell)
    with Collector() as collector:
        with collector.named() as environ, spans.exporting(environ, service="controller"):
            asyncio.run(scenario())
        (scale,) = collector.spans
    assert scale.name == "scale"
    assert scale.trace_id.hex() == trace_headers.trace_id(waking or version)
    links = [link.trace_id.hex() for link in scale.links]
    assert links == ([trace_headers.trace_id(version)] if waking else [])
    assert attributes(scale)["to"] == 1


# What pods get


def of(**spec: Any) -> Workspace:
    return samples.workspace(**spec)


def test_pods_of_tenants_get_no_credentials_of_the_collector() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret",
        "OTEL_TRACES_SAMPLER": "parentbased_always_on", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/key",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://user:secret@elsewhere/v1/traces",
    }  # fmt: skip
    settings = TraceSettings.of(environ)
    assert dict(settings.env) == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_TRACES_SAMPLER": "parentbased_always_on",
    }
    made = activator_deployment(of(), SystemSettings(tracing=settings))
    assert "secret" not in str(made)
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in container["env"]] == sorted(settings.env)


def test_tracing_that_is_off_is_passed_to_nobody() -> None:
    assert not TraceSettings.of({"OTEL_TRACES_SAMPLER": "always_on"}).is_on
    assert not TraceSettings.of(
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}
    ).is_on


def egress(policy: Json) -> list[Json]:
    found: list[Json] = policy["spec"]["egress"]
    return found


def ports(policy: Json, to: Mapping[str, str]) -> set[int]:
    """The ports that a policy opens to pods of namespaces with these labels."""
    peer = {"namespaceSelector": {"matchLabels": dict(to)}}
    rules = [rule for rule in egress(policy) if peer in rule.get("to", ())]
    return {each["port"] for rule in rules for each in rule["ports"]}


def test_policies_let_traced_pods_reach_the_collector_alone() -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.monitoring:4318"}
    settings = TraceSettings.of(environ, servers=COLLECTOR, namespaces=MONITORING)
    traced, untraced = SystemSettings(tracing=settings), SystemSettings()
    assert ports(network_policy(of(), traced, DIRECT), MONITORING) == {4317}
    assert ports(activator_policy(of(), traced, DIRECT), MONITORING) == {4318}
    own = of(runtime={"tracing": {"endpoint": "http://collector.monitoring:5317"}})
    assert ports(network_policy(own, traced, DIRECT), MONITORING) == {4317, 5317}
    # A tenant alone opens nothing.
    assert egress(network_policy(own, untraced, DIRECT)) == egress(network_policy(of(), untraced, DIRECT))  # fmt: skip


def test_only_vllm_that_names_no_collector_gets_the_operators() -> None:
    given = with_tracing(of(), COLLECTOR).spec.runtime.tracing
    assert given is not None
    assert given.endpoint == COLLECTOR
    own = of(runtime={"tracing": {"endpoint": "http://mine:4317"}})
    assert with_tracing(own, COLLECTOR) is own
    other = of(runtime={"engine": "sglang"})
    assert with_tracing(other, COLLECTOR) is other
