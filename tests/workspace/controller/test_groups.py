"""Servers that span nodes: groups of a LeaderWorkerSet, from nothing to serving, replaced, scaled and taken back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.examples import examples
from tests.workspace import samples
from tests.workspace.controller.evictions import evict
from tests.workspace.controller.fakeapi import Conflict
from tests.workspace.controller.leaderworkersets import GROUP, WORKER
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_fixed_point import MODELS, Controller
from tests.workspace.render.test_published import problems
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.loops.scaling_loop import find_targets, server_args
from workspace.controller.observation.node_news import NodeNews
from workspace.controller.observation.objects import has_labels, is_ready, pod_template
from workspace.controller.reasons import Reason
from workspace.controller.reconcile import reconcile
from workspace.controller.servers.pod_marks import DO_NOT_DISRUPT
from workspace.document import workspace_of
from workspace.render import names
from workspace.render.groups import KIND

Json = dict[str, Any]
SPREAD = {"gpu": "H100", "gpus": 4, "nodes": 2}
GROUPS = names.group(NAME)
H100 = {
    "nvidia.com/gpu.memory": "81559", "nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.compute.minor": "0",
}  # fmt: skip


def made(*nodes: str, gpus: int = 2, **spec: Any) -> Cluster:
    cluster = Cluster()
    for name in nodes:
        cluster.add_node(name, gpus=gpus)
    cluster.create_workspace(**({"resources": SPREAD} | spec))
    return cluster


def condition(cluster: Cluster, kind: str) -> Json:
    found = cluster.api.get("Workspace", NAMESPACE, NAME)["status"]["conditions"]
    return next(each for each in found if each["type"] == kind)


def group_pods(cluster: Cluster) -> list[Json]:
    roles = (names.SERVER, names.WORKER)
    return [pod for role in roles for pod in cluster.api.list("Pod", NAMESPACE, {names.ROLE: role})]


def kinds(cluster: Cluster) -> set[str]:
    """What keeps the Workspace's servers."""
    own = (("Deployment", NAME), (KIND, GROUPS))
    return {kind for kind, name in own if (kind, NAMESPACE, name) in cluster.api.objects}


def version(pod: Json) -> str:
    return str(pod["metadata"]["labels"][names.REVISION])


def test_a_group_serves_as_one_replica() -> None:
    cluster = made("n1", "n2")
    cluster.settle()
    leader, worker = group_pods(cluster)
    assert is_ready(leader)
    assert leader["spec"]["nodeName"] != worker["spec"]["nodeName"]
    assert has_labels(worker, {WORKER: "1", GROUP: "0", names.ROLE: names.WORKER})
    assert kinds(cluster) == {KIND}
    kept = cluster.api.get(KIND, NAMESPACE, GROUPS)
    assert problems(kept, "leaderworkerset.json") == []
    status = cluster.api.get("Workspace", NAMESPACE, NAME)["status"]
    assert (status["replicas"], status["readyReplicas"], status["gpus"]) == (1, 1, 4)
    assert condition(cluster, "Ready")["status"] == "True"
    assert "on 4 GPUs of 2 nodes" in condition(cluster, "ModelResolved")["message"]
    service = cluster.api.get("Service", NAMESPACE, NAME)["spec"]["selector"]
    assert has_labels(leader, service)
    assert not has_labels(worker, service)


def test_no_pod_of_a_group_starts_before_as_many_nodes_as_it_needs_hold_the_model() -> None:
    cluster = made("n1", "n2", "n3", "n4", "n5", replicas=2)
    for _ in range(60):
        before = len([pod for pod in group_pods(cluster) if has_labels(pod, {WORKER: "0"})])
        cluster.reconcile()
        groups = cluster.api.list(KIND, NAMESPACE)
        warm = sum(bool(held) for held in cluster.held.values())
        if groups:
            assert warm >= 2 * groups[0]["spec"]["replicas"]
        cluster.step()
        assert before <= 2
    assert len(cluster.ready_servers()) == 2
    # The fifth node isn't needed.
    assert sum(bool(held) for held in cluster.held.values()) == 4


def test_a_group_on_too_few_nodes_is_made_for_an_autoscaler_to_see() -> None:
    cluster = made("n1")
    cluster.settle()
    assert len(group_pods(cluster)) == 2
    assert condition(cluster, "Scheduled")["reason"] == Reason.UNSCHEDULABLE
    cluster.add_node("n2", gpus=2)
    cluster.settle()
    assert condition(cluster, "Ready")["status"] == "True"


def test_what_keeps_a_worker_from_running_is_told() -> None:
    cluster = made("n1", "n2")
    cluster.settle()
    (worker,) = cluster.api.list("Pod", NAMESPACE, {names.ROLE: names.WORKER})
    (leader,) = cluster.servers()
    ended = {"exitCode": 1, "reason": "Error", "message": "no route to the leader"}
    broken = [{"name": "server", "restartCount": 1, "state": {"terminated": ended}}]
    for pod in (leader, worker):
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}
        status |= {"containerStatuses": broken} if pod is worker else {}
        cluster.api.update(
            "Pod", NAMESPACE, pod["metadata"]["name"],
            lambda document, status=status: document.update(status=status),
        )  # fmt: skip
    cluster.reconcile()
    found = condition(cluster, "Available")
    assert found["reason"] == Reason.CRASH_LOOP
    assert f"{GROUPS}-0-1 ended" in found["message"]
    assert "no route to the leader" in found["message"]


def test_a_new_version_replaces_groups_one_by_one_and_none_is_missing() -> None:
    cluster = made("n1", "n2", "n3", "n4", replicas=1)
    cluster.settle()
    (old,) = map(version, cluster.servers())
    cluster.change_spec(model=MODELS[2])
    for _ in range(80):
        cluster.reconcile()
        cluster.step()
        assert cluster.ready_servers()
        assert len(cluster.servers()) <= 2
    (new,) = map(version, cluster.servers())
    assert new != old
    assert condition(cluster, "Ready")["status"] == "True"


@pytest.mark.parametrize("back", [False, True])
def test_a_version_of_the_other_kind_takes_over_once_it_is_ready(back: bool) -> None:
    single, spread = {"gpu": "H100", "gpus": 2}, SPREAD
    first, second = (spread, single) if back else (single, spread)
    cluster = made("n1", "n2", "n3", resources=first)
    cluster.settle()
    before = kinds(cluster)
    cluster.change_spec(resources=second)
    for _ in range(60):
        cluster.reconcile()
        cluster.step()
        assert cluster.ready_servers()
    assert kinds(cluster) == {"Deployment", KIND} - before
    assert condition(cluster, "Ready")["status"] == "True"
    policies = {each["metadata"]["name"] for each in cluster.api.list("NetworkPolicy", NAMESPACE)}
    assert (GROUPS in policies) is not back


def test_without_leaderworkersets_the_condition_says_so_and_the_old_version_serves() -> None:
    cluster = made("n1", "n2", resources={"gpu": "H100", "gpus": 2})
    cluster.has_groups = False
    cluster.settle()
    cluster.change_spec(resources=SPREAD)
    cluster.settle()
    assert kinds(cluster) == {"Deployment"}
    assert cluster.ready_servers()
    assert condition(cluster, "Ready")["reason"] == Reason.GROUPS_MISSING
    cluster.has_groups = True
    cluster.add_node("n3", gpus=2)
    cluster.settle()
    assert kinds(cluster) == {KIND}
    assert condition(cluster, "Ready")["status"] == "True"


def test_groups_scale_to_zero_behind_the_activator_and_back() -> None:
    cluster = made("n1", "n2", scale={"min": 0, "max": 2})
    cluster.wanted = 0
    cluster.settle()
    assert group_pods(cluster) == []
    assert condition(cluster, "Available")["reason"] == Reason.SCALED_TO_ZERO
    cluster.wanted = 1
    cluster.settle()
    assert len(group_pods(cluster)) == 2
    selected = cluster.api.get("Service", NAMESPACE, NAME)["spec"]["selector"][names.ROLE]
    assert selected == names.SERVER


def test_a_queue_admits_the_group_and_not_its_pods() -> None:
    cluster = made("n1", resources={**SPREAD, "provisioning": {"by": "kueue", "queue": "gpus"}})
    cluster.settle()
    found = cluster.api.get(KIND, NAMESPACE, GROUPS)
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    for pod in (pod_template(found), found["spec"]["leaderWorkerTemplate"]["workerTemplate"]):
        assert "kueue.x-k8s.io/queue-name" not in pod["metadata"]["labels"]


def test_a_rollback_needs_no_registry_and_brings_the_same_pods() -> None:
    cluster = made("n1", "n2", "n3", "n4")
    cluster.settle()
    before = cluster.api.get(KIND, NAMESPACE, GROUPS)["spec"]["leaderWorkerTemplate"]
    cluster.change_spec(model=MODELS[2])
    cluster.settle()
    cluster.registry_up = False
    cluster.change_spec(model={"image": samples.IMAGE})
    cluster.settle()
    assert cluster.api.get(KIND, NAMESPACE, GROUPS)["spec"]["leaderWorkerTemplate"] == before


def drain(cluster: Cluster, node: str) -> int:
    """As `kubectl drain`. Returns the fewest ready servers meanwhile."""
    cluster.api.update(
        "Node", "", node, lambda document: document["spec"].update(unschedulable=True)
    )
    least = 1
    for _ in range(60):
        for pod in group_pods(cluster):
            if pod["spec"].get("nodeName") == node:
                with suppress(Conflict):
                    evict(cluster.api, pod)
        for act in (cluster.reconcile, cluster.step):
            least = min(least, len(cluster.ready_servers()))
            act()
    assert node not in {pod["spec"].get("nodeName") for pod in group_pods(cluster)}
    return least


def by_karpenter(*nodes: str) -> Cluster:
    """A Workspace whose nodes Karpenter makes; some stand."""
    cluster = made(*nodes, resources={**SPREAD, "provisioning": {"by": "karpenter"}})
    for name in nodes:
        cluster.api.update("Node", "", name, lambda each: each["metadata"]["labels"].update(H100))
    return cluster


def budget(cluster: Cluster) -> Json:
    found: Json = cluster.api.get("PodDisruptionBudget", NAMESPACE, NAME)["spec"]
    return {name: found[name] for name in ("minAvailable", "maxUnavailable") if name in found}


def test_karpenter_may_think_of_moving_the_only_group_which_is_then_replaced_first() -> None:
    cluster = by_karpenter("n1", "n2", "n3", "n4", "n5")
    cluster.settle()
    assert budget(cluster) == {"maxUnavailable": 1}
    (leader,) = cluster.servers()
    node = leader["spec"]["nodeName"]

    def disrupt(document: Json) -> None:
        document["spec"]["taints"] = [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]

    # It taints, and waits before it evicts.
    cluster.api.update("Node", "", node, disrupt)
    cluster.reconcile()
    assert budget(cluster) == {"minAvailable": 3}
    assert drain(cluster, node) == 1
    cluster.settle()
    assert budget(cluster) == {"maxUnavailable": 1}
    assert len(group_pods(cluster)) == 2


def test_karpenter_leaves_a_worker_alone_until_its_leader_has_started() -> None:
    cluster = by_karpenter("n1", "n2")
    marks: set[tuple[bool, bool]] = set()
    for _ in range(40):
        cluster.reconcile()
        for leader in cluster.servers():
            for worker in cluster.api.list("Pod", NAMESPACE, {names.ROLE: names.WORKER}):
                if worker["spec"].get("nodeName"):
                    annotations = worker["metadata"].get("annotations") or {}
                    marks.add((is_ready(leader), annotations.get(DO_NOT_DISRUPT) == "true"))
        cluster.step()
    assert marks == {(False, True), (True, False)}


def test_the_autoscalers_answer_about_a_worker_is_told() -> None:
    cluster = made("n1")
    cluster.settle()
    (worker,) = cluster.api.list("Pod", NAMESPACE, {names.ROLE: names.WORKER})
    assert worker["spec"].get("nodeName") is None
    news = NodeNews("The autoscaler makes no node: a limit.", "2026-01-01T00:00:00Z")
    seen = replace(cluster.observe(), answers={worker["metadata"]["uid"]: news})
    status = reconcile(seen).status
    assert status is not None
    found = next(each for each in status["conditions"] if each["type"] == "Scheduled")
    assert found["message"].endswith("The autoscaler makes no node: a limit.")


@pytest.mark.parametrize("role", [names.SERVER, names.WORKER])
def test_the_only_group_goes_after_its_replacement_is_ready(role: str) -> None:
    cluster = made("n1", "n2", "n3", "n4", "n5")
    cluster.settle()
    (pod,) = cluster.api.list("Pod", NAMESPACE, {names.ROLE: role})
    assert drain(cluster, pod["spec"]["nodeName"]) == 1
    cluster.settle()
    assert cluster.api.get(KIND, NAMESPACE, GROUPS)["spec"]["replicas"] == 1
    assert len(group_pods(cluster)) == 2
    assert condition(cluster, "Ready")["status"] == "True"


def test_where_no_group_fits_beside_it_a_drain_is_not_held_up() -> None:
    cluster = made("n1", "n2", "n3")
    cluster.settle()
    (leader,) = cluster.servers()
    assert drain(cluster, leader["spec"]["nodeName"]) == 0
    cluster.settle()
    assert condition(cluster, "Ready")["status"] == "True"


def test_the_scaler_reads_leaders_alone() -> None:
    cluster = made("n1", "n2", scale={"min": 1, "max": 2})
    cluster.wanted = 1
    cluster.settle()
    objects = cluster.observe().objects
    for number, pod in enumerate(objects):
        if pod["kind"] == "Pod":
            pod["status"]["podIP"] = f"10.0.0.{number}"
    workspace = workspace_of(cluster.api.get("Workspace", NAMESPACE, NAME))
    (leader,) = [pod for pod in objects if has_labels(pod, {WORKER: "0"})]
    found = find_targets(workspace, objects)
    assert found.current == 1
    assert [each.url for each in found.servers] == [f"http://{leader['status']['podIP']}:8000"]
    assert "--pipeline-parallel-size" in server_args(workspace, objects)


def test_a_statefulsets_revision_with_our_labels_is_no_version() -> None:
    cluster = made("n1", "n2")
    cluster.settle()
    cache = WatchCache()
    cache.put(cluster.api.get("Workspace", NAMESPACE, NAME))
    found = cluster.api.list("ControllerRevision", NAMESPACE)
    told = {each["metadata"]["name"]: cache.put(each) for each in found}
    assert len(told) == 2
    assert {name for name, concerned in told.items() if not concerned} == {
        name for name in told if name.startswith(GROUPS)
    }
    for each in found:
        cache.drop(each)
    assert cache.objects((NAMESPACE, NAME)) == ()


class Groups(Controller):
    """The laws of all Workspaces, with servers that span one node or several, as LeaderWorkerSet comes and goes."""

    @rule(nodes=st.integers(1, 3), gpus=st.sampled_from([1, 2]))
    def spread(self, nodes: int, gpus: int) -> None:
        resources = {"gpu": "H100", "gpus": nodes * gpus, "nodes": nodes}
        self.cluster.change_spec(resources=resources, rollout=None)

    @rule(installed=st.booleans())
    def install(self, installed: bool) -> None:
        if not installed and (KIND, NAMESPACE, GROUPS) in self.cluster.api.objects:
            self.cluster.api.delete(KIND, NAMESPACE, GROUPS)
        self.cluster.has_groups = installed

    def settle(self) -> None:
        self.cluster.settle(rounds=160)

    def check_what_was_asked_for(self) -> None:
        api = self.cluster.api
        document = api.get("Workspace", NAMESPACE, NAME)
        if condition(self.cluster, "Ready")["status"] != "True":
            return
        nodes = document["spec"]["resources"].get("nodes", 1)
        kind = KIND if nodes > 1 else "Deployment"
        assert kinds(self.cluster) == {kind}
        own = (GROUPS,) if nodes > 1 else names.with_on_demand(NAME)
        found = [each for each in api.list(kind, NAMESPACE) if each["metadata"]["name"] in own]
        running = self.cluster.ready_servers()
        assert len(running) == sum(each["spec"]["replicas"] for each in found)
        assert len(group_pods(self.cluster)) == nodes * len(running)
        if document["spec"].get("scale") is None:
            assert len(running) == document["spec"].get("replicas", 1)


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=examples(25), stateful_step_count=25)
