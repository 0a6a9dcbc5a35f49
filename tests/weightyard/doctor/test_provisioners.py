"""The doctor's checks of who makes nodes: Karpenter's pools, Kueue's queues, and the APIs that Workspaces ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.weightyard.doctor.fakecluster import FakeCluster, InProcess
from tests.weightyard.doctor.sound import CLUSTER, EXPECTED, node
from tests.workspace import samples
from tests.workspace.test_node_pools import pool
from weightyard.doctor.cluster_checks import check_cluster
from weightyard.doctor.clusters import ClusterQuery, ask
from weightyard.doctor.provisioner_checks import USES, ProvisionerFacts
from weightyard.doctor.result import Finding

Json = dict[str, Any]
KINDS = {
    "karpenter.sh/v1": frozenset({"nodepools", "nodeclaims"}),
    "kueue.x-k8s.io/v1beta2": frozenset({"localqueues", "clusterqueues"}),
    "autoscaling.x-k8s.io/v1beta1": frozenset({"capacitybuffers", "provisioningrequests"}),
    "leaderworkerset.x-k8s.io/v1": frozenset({"leaderworkersets"}),
}
SMALL = pool({"key": "karpenter.k8s.aws/instance-gpu-name", "operator": "In", "values": ["t4"]})


def asking(nodes: int = 1, gpus: int | None = None, **provisioning: Any) -> Json:
    """A Workspace that is served."""
    resources = {"gpu": "L4", "nodes": nodes, "provisioning": provisioning}
    resources |= {} if gpus is None else {"gpus": gpus}
    document = samples.document("chat", namespace="team", resources=resources)
    status = {"conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]}
    return {**{k: v for k, v in document.items() if k != "apiVersion"}, "status": status}


def queue(name: str, active: str, **more: Any) -> Json:
    told = [{"type": "Active", "status": active, "message": "its flavor is missing"}]
    return {
        "metadata": {"name": name, **more},
        "spec": {"clusterQueue": "all"},
        "status": {"conditions": told},
    }


KARPENTER = asking(by="karpenter")
KUEUE = asking(by="kueue", queue="gpus")
SPREAD = asking(nodes=2, gpus=8, by="karpenter")
SPARES = asking(warmSpares=1)
GROUPS = asking(nodes=2)
LOCAL = queue("gpus", "True", namespace="team")
SOUND = ProvisionerFacts(KINDS, [SMALL, pool()], [LOCAL], [queue("all", "True")])


def findings(workspace: Json, facts: ProvisionerFacts) -> list[Finding]:
    cluster = replace(CLUSTER, served=(workspace,), provisioners=facts)
    return [each for each in check_cluster(cluster, EXPECTED) if each.level.value != "ok"]


@pytest.mark.parametrize("workspace", [KARPENTER, KUEUE, SPARES, GROUPS, asking()])
def test_a_cluster_that_has_what_is_asked_for_passes(workspace: Json) -> None:
    assert findings(workspace, SOUND) == []


def test_who_asks_for_nothing_needs_nothing() -> None:
    assert findings(asking(), ProvisionerFacts()) == []


@pytest.mark.parametrize(
    ("workspace", "change", "check", "level", "says"),
    [
        (KARPENTER, {"kinds": {}}, "node APIs", "fail", "Karpenter (karpenter.sh/v1) for team/chat"),
        (KARPENTER, {"kinds": {**KINDS, "karpenter.sh/v1": frozenset()}}, "node APIs", "fail", "Karpenter"),
        (KUEUE, {"kinds": {}}, "node APIs", "fail", "Kueue"),
        # A provisioning request is not a buffer, although both are of one group and version.
        (SPARES, {"kinds": {"autoscaling.x-k8s.io/v1beta1": frozenset({"provisioningrequests"})}}, "node APIs", "warn",
         "CapacityBuffer"),
        (GROUPS, {"kinds": {}}, "node APIs", "fail", "LeaderWorkerSet (leaderworkerset.x-k8s.io/v1) for team/chat"),
        (KARPENTER, {"pools": []}, "node pools", "fail", "there is no NodePool"),
        (KARPENTER, {"pools": [SMALL]}, "node pools", "fail", "gpu: its requirements leave no node"),
        (KARPENTER, {"pools": [{**pool(), "status": {"conditions": [
            {"type": "NodeClassReady", "status": "False", "message": "NodeClass gpu not found"}]}}]},
         "node pools", "fail", "NodeClass gpu not found"),
        (KARPENTER, {"pools": None}, "node pools", "warn", "you may not list NodePools"),
        (KUEUE, {"local_queues": []}, "queues", "fail", "there is no LocalQueue gpus"),
        (KUEUE, {"local_queues": [queue("gpus", "True", namespace="other")]}, "queues", "fail", "no LocalQueue gpus"),
        (KUEUE, {"local_queues": [queue("gpus", "False", namespace="team")]}, "queues", "fail", "flavor is missing"),
        (KUEUE, {"cluster_queues": [queue("all", "False")]}, "queues", "fail", "queue all isn't active"),
        (KUEUE, {"cluster_queues": []}, "queues", "fail", "there is no ClusterQueue all"),
        (KUEUE, {"local_queues": None}, "queues", "warn", "you may not list LocalQueues"),
    ],
)  # fmt: skip
def test_what_would_keep_nodes_from_being_made_is_found(
    workspace: Json, change: Json, check: str, level: str, says: str
) -> None:
    found = [e for e in findings(workspace, replace(SOUND, **change)) if e.check == check]
    assert [each.level.value for each in found] == [level]
    assert says in found[0].seen
    assert found[0].advice


def gpus_each(count: str) -> Json:
    return pool(
        {"key": "karpenter.k8s.aws/instance-gpu-count", "operator": "In", "values": [count]}
    )


def test_a_pool_is_asked_for_the_gpus_of_one_node() -> None:
    assert findings(SPREAD, replace(SOUND, pools=[gpus_each("4")])) == []
    (found,) = findings(SPREAD, replace(SOUND, pools=[gpus_each("2")]))
    assert "its requirements leave no node" in found.seen


def test_cluster_queues_that_may_not_be_read_are_not_missing() -> None:
    assert findings(KUEUE, replace(SOUND, cluster_queues=None)) == []


def test_gpus_that_dra_alone_offers_are_named() -> None:
    bare = node("gpu-1", **{"nvidia.com/gpu": "0"})
    facts = replace(SOUND, dra_nodes=frozenset({"gpu-1"}))
    cluster = replace(CLUSTER, nodes=(bare, node("gpu-2")), provisioners=facts)
    (finding,) = [each for each in check_cluster(cluster, EXPECTED) if each.level.value != "ok"]
    assert finding.seen == "8 on 1 nodes; by DRA alone on gpu-1"
    assert "device plugin" in finding.advice


def test_facts_are_asked_for_where_the_groups_are_served() -> None:
    fake = FakeCluster(lambda _: None, [node()])
    groups = [*(use.group for use in USES), "resource.k8s.io"]
    fake.documents["/apis"] = {"groups": [{"name": each} for each in groups]}
    for place, plurals in KINDS.items():
        fake.documents[f"/apis/{place}"] = {"resources": [{"name": each} for each in plurals]}
    fake.documents["/apis/karpenter.sh/v1/nodepools"] = {"items": [pool()]}
    fake.documents["/apis/kueue.x-k8s.io/v1beta2/localqueues"] = {"items": [LOCAL]}
    fake.documents["/apis/resource.k8s.io/v1/resourceslices"] = {"items": [
        {"metadata": {"name": "a"}, "spec": {"driver": "gpu.nvidia.com", "nodeName": "gpu-1"}},
        {"metadata": {"name": "b"}, "spec": {"driver": "dra.net", "nodeName": "gpu-2"}},
    ]}  # fmt: skip
    facts = ask(InProcess(fake), ClusterQuery("a=b", "weightyard", (), ())).provisioners
    assert facts.kinds == {**KINDS, "kueue.x-k8s.io/v1beta1": frozenset()}
    assert facts.pools == (pool(),)
    assert facts.local_queues == (LOCAL,)
    assert facts.cluster_queues is None
    assert facts.dra_nodes == {"gpu-1"}
