"""What is given to a cluster is accepted by it, whole, from the oldest supported version to the newest."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.kube_objects import parse_quantity
from modelimage.errors import InvalidInput
from tests.workspace import openapi, samples
from workspace.render.cluster import render_kubernetes
from workspace.render.kubernetes import activator_deployment, server_service, surrounding_objects
from workspace.render.pod import resources
from workspace.render.release import PinnedModel
from workspace.render.routing import Routing, SystemSettings
from workspace.schema import Workspace

Json = dict[str, Any]
ENVIRONMENT = SystemSettings(system_namespace="weightyard")

EVERYTHING = {
    "model": {"image": samples.IMAGE, "variant": "auto", "pullSecret": "pull"},
    "runtime": {
        "args": ["--max-num-seqs", "32"],
        "env": [
            {"name": "A", "value": ""},
            {"name": "TOKEN", "secret": {"name": "tokens", "key": "hf"}},
        ],
        "adapters": [{"name": "sql", "image": "registry.example/team/sql:v1"}],
        "drainSeconds": 60,
    },
    "resources": {
        "gpu": "L4",
        "gpus": 2,
        "cpu": "0.5",
        "memory": "1024Mi",
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [
            {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
        ],
    },
    "placement": "required",
    "tenancy": {
        "quota": {"requests.nvidia.com/gpu": "4", "requests.memory": "2048Mi"},
        "limits": {"cpu": "2000m", "memory": "1024Mi"},
        "networkPolicy": {"allowFromNamespaces": {"team": "b"}},
    },
}


def rendered(workspace: Workspace) -> list[Json]:
    return render_kubernetes(workspace, samples.release(workspace), ENVIRONMENT)


def one(objects: list[Json], kind: str) -> Json:
    return next(each for each in objects if each["kind"] == kind)


def pod(objects: list[Json]) -> Json:
    return one(objects, "Deployment")["spec"]["template"]["spec"]


SPECS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just(EVERYTHING["model"]),
        "runtime": st.just(EVERYTHING["runtime"]),
        "resources": st.sampled_from(
            [
                EVERYTHING["resources"],
                {"gpus": 0, "memory": "64Gi"},
                {"gpuMemory": "80Gi", "vendor": "amd"},
                {"migProfile": "3g.40gb"},
                {"gpu": "A100", "fraction": 0.7},
            ]
        ),
        "placement": st.sampled_from(["preferred", "required", "any"]),
        "tenancy": st.just(EVERYTHING["tenancy"]),
        "scale": st.sampled_from(
            [
                {"min": 0, "max": 3},
                {"min": 1, "max": 3, "by": "hpa"},
                {"min": 0, "max": 3, "by": "keda", "prometheus": "http://prometheus:9090"},
            ]
        ),
    },
)


@given(SPECS, st.sampled_from([openapi.OLDEST, openapi.NEWEST]))
def test_every_object_is_accepted_and_kept_whole_by_old_and_new_servers(
    spec: Json, version: str
) -> None:
    workspace = samples.workspace(**spec)
    objects = [*rendered(workspace), *surrounding_objects(workspace, ENVIRONMENT)]
    for each in objects:
        if each["kind"] != "ScaledObject":
            assert openapi.problems(each, version) == [], each["kind"]


@given(SPECS)
def test_rendering_is_plain_data_and_repeats_itself(spec: Json) -> None:
    workspace = samples.workspace(**spec)
    first = rendered(workspace)
    assert json.loads(json.dumps(first)) == first
    assert rendered(workspace) == first


def test_the_pod_fits_the_restricted_standard() -> None:
    spec = pod(rendered(samples.workspace(**EVERYTHING)))
    for each in [spec, activator_pod()]:
        container = each["containers"][0]["securityContext"]
        assert each["securityContext"]["runAsNonRoot"] is True
        assert each["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert each["automountServiceAccountToken"] is False
        assert container["allowPrivilegeEscalation"] is False
        assert container["readOnlyRootFilesystem"] is True
        assert container["capabilities"] == {"drop": ["ALL"]}
        kinds = {kind for volume in each.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"csi", "emptyDir"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(each)


def activator_pod() -> Json:
    workspace = samples.workspace(scale={"min": 0, "max": 1})
    return activator_deployment(workspace, ENVIRONMENT)["spec"]["template"]["spec"]


def test_the_model_comes_as_a_csi_volume_pinned_by_digest() -> None:
    workspace = samples.workspace(**EVERYTHING)
    spec = pod(rendered(workspace))
    by_name = {each["name"]: each for each in spec["volumes"]}
    assert by_name["model"]["csi"] == {
        "driver": "cache.weightyard.dev",
        "readOnly": True,
        "volumeAttributes": {"image": samples.pinned().image, "variant": "bf16"},
        "nodePublishSecretRef": {"name": "pull"},
    }
    assert "@sha256:" in by_name["adapter-sql"]["csi"]["volumeAttributes"]["image"]
    mounts = {each["mountPath"]: each for each in spec["containers"][0]["volumeMounts"]}
    assert mounts["/model"]["readOnly"]
    assert mounts["/adapters/sql"]["readOnly"]


@pytest.mark.parametrize(
    ("placement", "member"),
    [
        ("required", "requiredDuringSchedulingIgnoredDuringExecution"),
        ("preferred", "preferredDuringSchedulingIgnoredDuringExecution"),
    ],
)
def test_nodes_that_hold_the_model_attract_the_pod(placement: str, member: str) -> None:
    workspace = samples.workspace(placement=placement)
    key = samples.release(workspace).key
    affinity = pod(rendered(workspace))["affinity"]["nodeAffinity"]
    assert set(affinity) == {member}
    label = f"cache.weightyard.dev/m.{key.hex[:12]}"
    assert json.dumps({"key": label, "operator": "In", "values": ["ready"]}) in json.dumps(affinity)


def test_a_traced_version_has_one_trace_from_the_volume_to_the_server() -> None:
    """It is the version's own and doesn't change by itself, which would roll the servers."""
    tracing = {"tracing": {"endpoint": "http://collector.monitoring:4317"}}
    objects, again = (rendered(samples.workspace("chat", runtime=tracing)) for _ in range(2))
    assert objects == again
    template = one(objects, "Deployment")["spec"]["template"]
    parent = template["metadata"]["annotations"]["weightyard.dev/traceparent"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", parent)
    (server,) = template["spec"]["containers"]
    assert {"name": "TRACEPARENT", "value": parent} in server["env"]
    at = server["args"].index("--otlp-traces-endpoint")
    assert server["args"][at + 1] == "http://collector.monitoring:4317"
    volumes = [each["csi"] for each in template["spec"]["volumes"] if "csi" in each]
    assert {each["volumeAttributes"]["traceparent"] for each in volumes} == {parent}
    assert "trace" not in json.dumps(pod(rendered(samples.workspace("chat"))))


def test_placement_any_leaves_the_scheduler_alone() -> None:
    assert "affinity" not in pod(rendered(samples.workspace(placement="any")))


def test_running_requests_have_time_to_finish() -> None:
    spec = pod(rendered(samples.workspace(runtime={"drainSeconds": 300})))
    script = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    compile(script, "preStop", "exec")
    assert "vllm:num_requests_running" in script
    assert spec["terminationGracePeriodSeconds"] > 305


def test_the_startup_probe_outlasts_reading_the_weights() -> None:
    workspace = samples.workspace()
    plan = samples.release(workspace).plan
    probe = pod(rendered(workspace))["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= plan.probes.startup_seconds


@pytest.mark.parametrize(
    ("resources", "name", "count"),
    [
        ({"gpu": "L4", "gpus": 2}, "nvidia.com/gpu", "2"),
        ({"gpuMemory": "64Gi", "vendor": "amd", "gpus": 1}, "amd.com/gpu", "1"),
        ({"gpuMemory": "64Gi", "vendor": "intel", "gpus": 1}, "gpu.intel.com/xe", "1"),
        ({"migProfile": "3g.40gb"}, "nvidia.com/mig-3g.40gb", "1"),
    ],
)
def test_each_vendors_accelerators_are_asked_for_by_their_name(
    resources: Json, name: str, count: str
) -> None:
    asked = pod(rendered(samples.workspace(resources=resources)))["containers"][0]["resources"]
    assert asked["limits"][name] == asked["requests"][name] == count


@pytest.mark.parametrize(
    ("vendor", "engine", "image"),
    [
        ("nvidia", "vllm", "vllm/vllm-openai:"),
        ("amd", "vllm", "vllm/vllm-openai-rocm:"),
        ("intel", "vllm", "vllm/vllm-openai-xpu:"),
        ("neuron", "vllm", None),
        ("amd", "sglang", None),
    ],
)
def test_each_vendor_gets_an_image_for_its_gpus(
    vendor: str, engine: str, image: str | None
) -> None:
    resources = {"gpuMemory": "64Gi", "vendor": vendor, "gpus": 1}
    workspace = samples.workspace(resources=resources, runtime={"engine": engine})
    if image is None:
        with pytest.raises(InvalidInput, match=f"{engine} for {vendor} GPUs") as caught:
            rendered(workspace)
        assert "spec.runtime.image" in str(caught.value.hint)
    else:
        assert image in pod(rendered(workspace))["containers"][0]["image"]


@pytest.mark.parametrize("resources", [{"gpu": "MI300X"}, {"gpu": "L4", "vendor": "amd"}])
def test_a_gpu_of_another_vendor_is_refused(resources: Json) -> None:
    with pytest.raises(InvalidInput, match=r"spec\.resources\.gpu: .* is by"):
        rendered(samples.workspace(resources=resources))


@pytest.mark.parametrize(
    ("count", "replicas"),
    [({"replicas": 0}, 0), ({"replicas": 2}, 2), ({}, 1), ({"scale": {"min": 0, "max": 2}}, 1)],
)
def test_the_replicas_asked_for_are_rendered(count: Json, replicas: int) -> None:
    workspace = samples.workspace(**count)
    found = render_kubernetes(workspace, samples.release(workspace), SystemSettings())
    assert [each["spec"]["replicas"] for each in found if each["kind"] == "Deployment"] == [
        replicas
    ]


def test_a_cpu_server_asks_for_no_gpu_and_tolerates_none() -> None:
    spec = pod(rendered(samples.workspace(resources={"gpus": 0})))
    assert set(spec["containers"][0]["resources"]["requests"]) == {"cpu", "memory"}
    assert "tolerations" not in spec


def test_only_the_agent_is_reached_by_servers_and_only_the_named_reach_them() -> None:
    policy = one(rendered(samples.workspace(**EVERYTHING)), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (egress,) = policy["egress"]
    assert egress["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "agent"
    sources = policy["ingress"][0]["from"]
    assert sources[0] == {"podSelector": {}}
    assert sources[-1] == {"namespaceSelector": {"matchLabels": {"team": "b"}}}


def test_labels_carry_what_selectors_select() -> None:
    workspace = samples.workspace(scale={"min": 0, "max": 2})
    objects = [
        *rendered(workspace),
        *surrounding_objects(workspace, ENVIRONMENT, Routing(role="activator")),
    ]
    templates = [each["spec"]["template"] for each in objects if each["kind"] == "Deployment"]
    servers, activators = (template["metadata"]["labels"].items() for template in templates)
    services = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Service"}
    assert services["chat"]["spec"]["selector"].items() <= activators
    assert server_service(workspace)["spec"]["selector"].items() <= servers
    assert not services["chat"]["spec"]["selector"].items() <= servers


def test_the_named_namespaces_may_scrape_servers_and_activators() -> None:
    workspace = samples.workspace(scale={"min": 0, "max": 2})
    environment = SystemSettings(metrics_from={"team": "metrics"})
    policies = [
        each for each in surrounding_objects(workspace, environment)
        if each["kind"] == "NetworkPolicy"
    ]  # fmt: skip
    assert len(policies) == 2
    for each in policies:
        sources = each["spec"]["ingress"][0]["from"]
        assert {"namespaceSelector": {"matchLabels": {"team": "metrics"}}} in sources


@pytest.mark.parametrize("route", [None, {"parentRefs": [{"name": "public"}]}])
def test_gateways_reach_the_servers_of_a_route_alone(route: Json | None) -> None:
    workspace = samples.workspace(scale={"min": 0, "max": 2}, **({"route": route} if route else {}))
    environment = SystemSettings(gateways_from={"team": "gateways"})
    for each in surrounding_objects(workspace, environment):
        if each["kind"] == "NetworkPolicy":
            source = {"namespaceSelector": {"matchLabels": {"team": "gateways"}}}
            assert (source in each["spec"]["ingress"][0]["from"]) == bool(route)


def test_the_checker_itself_sees_what_a_server_would_drop() -> None:
    deployment = one(rendered(samples.workspace()), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    deployment["spec"]["replicas"] = "one"
    found = " ".join(openapi.problems(deployment, openapi.OLDEST))
    assert "livenesProbe" in found
    assert "$.spec.replicas" in found


@pytest.mark.parametrize(
    ("weights", "cpus", "at_most"), [(8 * 10**6, "1", 3.2), (16 * samples.GB, "8", 34)]
)
def test_a_cpu_server_asks_for_what_its_model_needs(
    weights: int, cpus: str, at_most: float
) -> None:
    model = PinnedModel(
        "r.example/a@sha256:" + "a" * 64, {"bf16": samples.record(weight_bytes=weights)}
    )
    workspace = samples.workspace(resources={"gpus": 0}, runtime={"contextLength": 2048})
    requests = resources(workspace.spec, samples.release(workspace, model=model))["requests"]
    assert requests["cpu"] == cpus
    assert weights < parse_quantity(requests["memory"]) <= at_most * (1 << 30)
