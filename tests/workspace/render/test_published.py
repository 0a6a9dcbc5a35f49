"""What is written for KEDA and llm-d is what their published schemas take, and names the resources that it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.workspace import openapi, samples
from workspace.render import names
from workspace.render.autoscalers import autoscaler
from workspace.render.cluster import render_kubernetes
from workspace.render.http_route import http_route, version_services
from workspace.render.llmd import inference_pool, render_llmd
from workspace.render.pod import pod_template
from workspace.render.routing import Routing, SystemSettings
from workspace.render.spare_nodes import spare_nodes

Json = dict[str, Any]
PUBLISHED = Path(__file__).parent / "published"
# There is none for Neuron devices by default.
ENGINE = {"image": "registry.example/team/engine:v1"}
RESOURCES: list[Json] = [
    {"gpu": "L4"}, {"gpu": "H100", "gpus": 4}, {"gpus": 0, "memory": "64Gi"},
    {"gpu": "A100", "migProfile": "3g.20gb"}, {"gpuMemory": "64Gi", "vendor": "amd"},
    {"gpuMemory": "64Gi", "vendor": "intel"}, {"gpuMemory": "64Gi", "vendor": "neuron"},
    {"gpu": "L4", "nodeSelector": {"pool": "gpus"}, "tolerations": [{"key": "spot", "operator": "Exists"}]},
]  # fmt: skip


def problems(document: Json, schema: str) -> list[str]:
    """What a published schema finds wrong."""
    validator = Draft202012Validator(json.loads((PUBLISHED / schema).read_text()))
    return [f"{each.json_path}: {each.message}" for each in validator.iter_errors(document)]


@given(
    least=st.integers(0, 3), more=st.integers(0, 5), depth=st.integers(1, 99), window=st.integers(0, 3600)
)  # fmt: skip
def test_keda_takes_the_scaled_object(least: int, more: int, depth: int, window: int) -> None:
    scale = {
        "min": least, "max": max(1, least + more), "queueDepth": depth, "downWindowSeconds": window,
        "by": "keda", "prometheus": "http://prometheus.monitoring:9090",
    }  # fmt: skip
    (document,) = autoscaler(samples.workspace(scale=scale), {"name": "chat"})
    assert problems(document, "keda-scaledobject.json") == []
    # The CRD leaves a trigger's metadata open; these are what KEDA's Prometheus scaler requires.
    for trigger in document["spec"]["triggers"]:
        assert {"serverAddress", "query", "threshold"} <= set(trigger["metadata"])


def test_the_schema_for_keda_tells_wrong_from_right() -> None:
    scale = {"max": 2, "by": "keda", "prometheus": "http://p:9090"}
    (document,) = autoscaler(samples.workspace(scale=scale), {"name": "chat"})
    document["spec"]["triggers"][0]["metadata"]["threshold"] = 4
    assert problems(document, "keda-scaledobject.json") != []


@pytest.mark.parametrize("port", [1, 8000, 65535])
def test_the_gateway_takes_the_pool(port: int) -> None:
    document = inference_pool(samples.workspace(runtime={"port": port}))
    assert problems(document, "inferencepool.json") == []
    assert problems({**document, "spec": {}}, "inferencepool.json") != []


POOLS = {"endpointPicker": "a-epp", "newEndpointPicker": "b-epp"}
PARENTS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["a", "b.c"])},
        optional={"namespace": st.just("gateways"), "sectionName": st.just("https")},
    ),
    min_size=1, max_size=3, unique_by=lambda each: each["name"],
)  # fmt: skip


@given(
    parents=PARENTS, hosts=st.lists(st.sampled_from(["a.example.com", "*.example.com"]), max_size=2),
    pools=st.sampled_from([None, POOLS]), weight=st.integers(0, 100), name=st.sampled_from(["a", "a" * 52]),
)  # fmt: skip
def test_a_gateway_takes_the_route_and_what_it_leads_to(
    parents: list[Json], hosts: list[str], pools: Json | None, weight: int, name: str
) -> None:
    asked = {
        "parentRefs": parents,
        "hostnames": hosts,
        **({"inferencePools": pools} if pools else {}),
    }
    workspace = samples.workspace(name, route=asked)
    route = workspace.spec.route
    assert route is not None
    document = http_route(workspace, route, None, weight=weight)
    assert problems(document, "httproute.json") == []
    backends = version_services(workspace, route, Routing(uid="u"), "abc")
    assert {each["kind"] for each in backends} == {"InferencePool" if pools else "Service"}
    for each in backends:
        # A Service's name is a label of DNS.
        assert len(each["metadata"]["name"]) <= 63
        assert each["kind"] == "Service" or problems(each, "inferencepool.json") == []


@pytest.mark.parametrize(
    "broken", [{"weight": -1}, {"weight": 1_000_001}, {"port": 0}, {"name": ""}, {"wieght": 1}]
)
def test_the_schema_for_routes_tells_wrong_from_right(broken: Json) -> None:
    workspace = samples.workspace(route={"parentRefs": [{"name": "a"}]})
    assert workspace.spec.route is not None
    document = http_route(workspace, workspace.spec.route, None, weight=10)
    document["spec"]["rules"][0]["backendRefs"][0] |= broken
    assert problems(document, "httproute.json") != []


@pytest.mark.parametrize("placement", ["required", "any"])
@pytest.mark.parametrize("resources", RESOURCES)
def test_an_autoscaler_takes_the_buffer_and_its_template(resources: Json, placement: str) -> None:
    asked = {**resources, "provisioning": {"warmSpares": 3, "capacity": {"spot": "preferred"}}}
    workspace = samples.workspace(resources=asked, placement=placement, runtime=ENGINE)
    release = samples.release(workspace)
    server = pod_template(workspace, release, revision="abc", uid="u")
    template, buffer = spare_nodes(workspace, server, gpus=release.plan.gpus)
    assert problems(buffer, "capacitybuffer.json") == []
    assert openapi.problems(template, openapi.OLDEST) == []
    assert buffer["spec"]["podTemplateRef"]["name"] == template["metadata"]["name"]
    pod, served = template["template"]["spec"], server["spec"]
    assert pod["containers"][0]["resources"] == served["containers"][0]["resources"]
    assert pod.get("nodeSelector") == served.get("nodeSelector")
    assert pod.get("tolerations") == served.get("tolerations")
    # A node that is yet to be made holds no model, and what a pod mounts or may read decides no node.
    assert names.node_label(release.key) not in json.dumps(template)
    assert not {"volumes", "serviceAccountName", "imagePullSecrets"} & set(pod)
    # Another's pods are selected by neither the Workspace's nor the spares' labels.
    assert template["template"]["metadata"]["labels"] == names.selector(workspace.name, names.SPARE)


@pytest.mark.parametrize(
    "broken",
    [{"podTemplateRef": {"name": ""}}, {"replicas": -1}, {"podTemplateRef": {}}, {"replica": 1}],
)
def test_the_schema_for_buffers_tells_wrong_from_right(broken: Json) -> None:
    workspace = samples.workspace(resources={"gpu": "L4", "provisioning": {"warmSpares": 1}})
    release = samples.release(workspace)
    _, buffer = spare_nodes(workspace, pod_template(workspace, release, revision="a"), gpus=1)
    buffer["spec"] |= broken
    assert problems(buffer, "capacitybuffer.json") != []


@pytest.mark.parametrize("resources", RESOURCES)
def test_the_chart_takes_the_values(resources: Json) -> None:
    workspace = samples.workspace(
        resources=resources, model={"image": samples.IMAGE, "pullSecret": "pull"}, runtime=ENGINE
    )
    values = render_llmd(workspace, samples.release(workspace))
    assert problems(values, "llm-d-modelservice-values.json") == []
    assert (
        problems({**values, "accelerator": {"kind": "x"}}, "llm-d-modelservice-values.json") != []
    )


@pytest.mark.parametrize("resources", RESOURCES)
def test_the_chart_asks_for_no_resource_that_the_pod_doesnt(resources: Json) -> None:
    """The chart adds `accelerator.resources[type]`, nvidia.com/gpu for a type that it doesn't know."""
    workspace = samples.workspace(resources=resources, runtime=ENGINE)
    values = render_llmd(workspace, samples.release(workspace))
    (container,) = values["decode"]["containers"]
    asked = set(container["resources"]["requests"]) - {"cpu", "memory"}
    accelerator = values["accelerator"]
    added = (
        {accelerator["resources"][accelerator["type"]]} if accelerator["type"] != "cpu" else set()
    )
    assert added == asked


def test_the_pod_that_llmd_makes_of_the_values_is_a_valid_pod() -> None:
    """The chart's template joins a container's own members with `extraConfig`, and the pod's likewise."""
    workspace = samples.workspace(model={"image": samples.IMAGE, "pullSecret": "pull"})
    decode = render_llmd(workspace, samples.release(workspace))["decode"]
    (given_container,) = decode["containers"]
    chart_only = {"modelCommand", "mountModelVolume", "extraConfig"}
    container = {k: v for k, v in given_container.items() if k not in chart_only}
    spec = {
        **decode["extraConfig"],
        "containers": [{**container, **given_container["extraConfig"]}],
        **{k: decode[k] for k in ("volumes", "tolerations", "terminationGracePeriodSeconds")},
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    assert openapi.problems(pod, openapi.OLDEST) == []
    assert not set(container) & set(given_container["extraConfig"])


def test_the_inference_pool_selects_the_pods_of_both_renderings() -> None:
    workspace = samples.workspace()
    selector = inference_pool(workspace)["spec"]["selector"]["matchLabels"].items()
    objects = render_kubernetes(workspace, samples.release(workspace), SystemSettings())
    template = next(each for each in objects if each["kind"] == "Deployment")["spec"]["template"]
    assert selector <= template["metadata"]["labels"].items()
    values = render_llmd(workspace, samples.release(workspace))
    assert selector <= values["modelArtifacts"]["labels"].items()
