"""The objects of servers on several nodes: what LeaderWorkerSet and Kubernetes take, and who reaches whom."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidInput
from tests.workspace import openapi, samples
from tests.workspace.controller.evictions import selects
from tests.workspace.render.test_published import problems
from workspace.hardware import requested_hardware
from workspace.render import drain, names
from workspace.render.cluster import render_kubernetes
from workspace.render.groups import KIND
from workspace.render.karpenter import node_pool
from workspace.render.llmd import render_llmd
from workspace.render.release import Release
from workspace.render.routing import SystemSettings
from workspace.schema import Workspace

Json = dict[str, Any]
SCHEMA = "leaderworkerset.json"


def spread(**spec: Any) -> Workspace:
    return samples.workspace(**({"resources": {"gpu": "L4", "gpus": 4, "nodes": 2}} | spec))


def rendered(workspace: Workspace) -> list[Json]:
    return render_kubernetes(workspace, samples.release(workspace), SystemSettings())


def one(objects: list[Json], kind: str, name: str | None = None) -> Json:
    (found,) = [
        each for each in objects
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]  # fmt: skip
    return found


def templates(workspace: Workspace) -> tuple[Json, Json]:
    group = one(rendered(workspace), KIND)["spec"]["leaderWorkerTemplate"]
    return group["leaderTemplate"], group["workerTemplate"]


@given(
    nodes=st.integers(2, 8), per_node=st.integers(0, 4), replicas=st.integers(1, 9),
    name=st.sampled_from(["a", "a" * 39]),
)  # fmt: skip
def test_leaderworkerset_and_kubernetes_take_the_groups(
    nodes: int, per_node: int, replicas: int, name: str
) -> None:
    resources = {"gpuMemory": "900Gi", "gpus": nodes * per_node, "nodes": nodes}
    workspace = samples.workspace(name, resources=resources, replicas=replicas)
    objects = rendered(workspace)
    found = one(objects, KIND)
    assert problems(found, SCHEMA) == []
    assert found["spec"]["replicas"] == replicas
    assert found["spec"]["leaderWorkerTemplate"]["size"] == nodes
    assert not [each for each in objects if each["kind"] == "Deployment"]
    for version in (openapi.OLDEST, openapi.NEWEST):
        for role in ("leaderTemplate", "workerTemplate"):
            template = found["spec"]["leaderWorkerTemplate"][role]
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            assert openapi.problems(pod, version) == []
        for each in objects:
            assert each is found or openapi.problems(each, version) == []


@pytest.mark.parametrize(
    "broken",
    [{"replicas": -1}, {"startupPolicy": "Never"}, {"size": 2}, {"rolloutStrategy": {}}],
)
def test_the_schema_tells_wrong_from_right(broken: Json) -> None:
    found = one(rendered(spread()), KIND)
    found["spec"] |= broken
    assert problems(found, SCHEMA) != []


def test_names_stay_within_what_kubernetes_labels_pods_with() -> None:
    """A StatefulSet's pods have the label `controller-revision-hash`: its name, a dash and ten characters."""
    longest = f"{names.group('a' * 39)}-10000"
    assert len(longest) + 11 <= 63
    assert len(f"{longest}-31") <= 63


def test_a_worker_gets_what_a_server_gets_and_no_requests() -> None:
    leader, worker = templates(spread(route={"parentRefs": [{"name": "public"}]}))
    (server,), (helper,) = leader["spec"]["containers"], worker["spec"]["containers"]
    for same in ("image", "env", "resources", "volumeMounts", "securityContext"):
        assert server[same] == helper[same]
    assert server["resources"]["requests"]["nvidia.com/gpu"] == "2"
    assert leader["spec"]["volumes"] == worker["spec"]["volumes"]
    assert {"readinessProbe", "startupProbe", "livenessProbe", "ports"} <= set(server)
    assert not {"readinessProbe", "startupProbe", "livenessProbe", "ports"} & set(helper)
    assert not [
        name for name in worker["metadata"]["annotations"] if name.startswith("prometheus.io/")
    ]
    # An InferencePool selects servers by these.
    assert not [name for name in worker["metadata"]["labels"] if name.startswith("llm-d.ai/")]
    assert worker["metadata"]["labels"][names.ROLE] == names.WORKER


def test_pods_of_groups_reach_each_other_and_name_servers_alone() -> None:
    workspace = spread()
    objects = rendered(workspace)
    policy = one(objects, "NetworkPolicy", names.group("chat"))["spec"]
    leader, worker = templates(workspace)
    for pod in (leader, worker):
        assert selects(policy["podSelector"], pod["metadata"]["labels"])
    (rule,) = policy["ingress"]
    assert rule == {"from": [{"podSelector": policy["podSelector"]}]}
    peers, name_servers = policy["egress"]
    assert peers == {"to": [{"podSelector": policy["podSelector"]}]}
    assert {port["port"] for port in name_servers["ports"]} == {53}
    servers = one(objects, "NetworkPolicy", "chat")["spec"]["podSelector"]
    assert not selects(servers, worker["metadata"]["labels"])
    assert not selects(policy["podSelector"], names.labels("chat", names.PREWARM))


def test_a_drain_takes_one_pod_of_all_groups_at_a_time() -> None:
    workspace = spread(replicas=2)
    budget = one(rendered(workspace), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert all(
        selects(budget["selector"], pod["metadata"]["labels"]) for pod in templates(workspace)
    )


def test_a_worker_stays_while_its_leader_answers() -> None:
    _, worker = templates(spread(runtime={"port": 9000, "drainSeconds": 30}))
    (container,) = worker["spec"]["containers"]
    script = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "LWS_LEADER_ADDRESS" in script
    assert "9000" in script
    assert worker["spec"]["terminationGracePeriodSeconds"] == drain.grace_seconds(30)


@pytest.mark.parametrize("by", [{"by": "hpa"}, {"by": "keda", "prometheus": "http://p:9090"}])
def test_autoscalers_scale_groups(by: Json) -> None:
    objects = rendered(spread(scale={"max": 3, **by}))
    scaler = one(objects, "ScaledObject" if by["by"] == "keda" else "HorizontalPodAutoscaler")
    found = one(objects, KIND)
    target = scaler["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": found["apiVersion"], "kind": KIND, "name": found["metadata"]["name"],
    }  # fmt: skip
    if by["by"] == "keda":
        assert problems(scaler, "keda-scaledobject.json") == []
        assert 'pod=~"chat--group-[0-9]+"' in scaler["spec"]["triggers"][0]["metadata"]["query"]


def test_values_for_llm_d_are_refused() -> None:
    workspace = spread()
    with pytest.raises(InvalidInput, match="servers of one pod"):
        render_llmd(workspace, samples.release(workspace))


def test_a_node_pool_has_instance_types_for_one_pod_and_gpus_for_all() -> None:
    workspace = spread(replicas=3)
    release: Release = samples.release(workspace)
    pool = node_pool(
        workspace,
        release,
        requested_hardware(workspace.spec.resources),
        node_class="EC2NodeClass/gpu",
    )
    assert pool["spec"]["limits"] == {"nvidia.com/gpu": "24"}  # beside those that they replace
    requirements = {each["key"]: each for each in pool["spec"]["template"]["spec"]["requirements"]}
    assert requirements["karpenter.k8s.aws/instance-gpu-count"]["values"] == ["1"]
