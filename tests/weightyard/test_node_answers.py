"""What `explain` says of nodes that servers wait for: what was asked of whom, and the answers."""

from __future__ import annotations

from typing import Any

import pytest

from modelimage.errors import AccessDenied, NotFound, Unreachable
from tests.workspace import samples
from tests.workspace.controller.living import ServedCluster, point_kubectl_at
from tests.workspace.controller.simulation import Cluster
from tests.workspace.test_node_pools import pool
from weightyard.cluster_nodes import node_facts
from weightyard.kubectl import Kubectl
from weightyard.node_answers import NodeFacts, node_lines
from workspace.render import names

Json = dict[str, Any]
SMALL = pool({"key": "karpenter.k8s.aws/instance-gpu-name", "operator": "In", "values": ["t4"]})
SMALL["metadata"]["name"] = "small"
POD = {"metadata": {"name": "chat-1", "namespace": "team", "uid": "u1"}, "spec": {}, "status": {}}
PLACED = {**POD, "spec": {"nodeName": "n1"}}


def workspace(nodes: int = 1, gpus: int = 1, **provisioning: Any) -> Json:
    document = samples.document(
        "chat", namespace="team", resources={"gpu": "L4", "nodes": nodes, "provisioning": provisioning}
    )  # fmt: skip
    return {**document, "status": {"gpus": gpus}}


def told(kind: str, status: str, message: str = "") -> Json:
    return {"type": kind, "status": status, "message": message}


def claim(name: str, pool_name: str, *conditions: Json) -> Json:
    return {
        "metadata": {"name": name, "labels": {"karpenter.sh/nodepool": pool_name}},
        "status": {"conditions": list(conditions)},
    }


def event(
    reason: str, message: str, second: int, source: str = "karpenter", uid: str = "u1"
) -> Json:
    return {
        "involvedObject": {"kind": "Pod", "uid": uid}, "reason": reason, "message": message,
        "source": {"component": source}, "lastTimestamp": f"2026-01-01T00:00:0{second}Z",
    }  # fmt: skip


CLAIMS = [
    claim("gpu-7", "gpu", told("Launched", "True"), told("Registered", "Unknown", "Node not registered with cluster")),
    claim("gpu-1", "gpu", told("Launched", "True"), told("Initialized", "True")),
    claim("other-1", "other", told("Launched", "False", "no capacity")),
]  # fmt: skip
EVENTS = [
    event("FailedScheduling", "0/3 nodes are available", 1, "default-scheduler"),
    event("FailedScheduling", "0/4 nodes are available", 3, "default-scheduler"),
    event("Nominated", "Pod should schedule on: nodeclaim/gpu-7", 2),
    event("Nominated", "another's", 4, uid="u2"),
    event("Pulled", "of no node", 5),
]


def test_karpenters_pools_claims_and_events_are_told() -> None:
    lines = node_lines(workspace(by="karpenter"), NodeFacts([POD], EVENTS, [SMALL, pool()], CLAIMS))
    assert lines == [
        "nodes: asked of karpenter: chat-1 has no node",
        "  NodePool small: its requirements leave no node with karpenter.k8s.aws/instance-gpu-name",
        "  NodePool gpu: makes such nodes",
        "  NodeClaim gpu-7: Launched true, Registered unknown (Node not registered with cluster)",
        "  Nominated by karpenter at 2026-01-01T00:00:02Z: Pod should schedule on: nodeclaim/gpu-7",
        "  FailedScheduling by default-scheduler at 2026-01-01T00:00:03Z: 0/4 nodes are available",
    ]


def test_of_many_answers_the_newest_are_told() -> None:
    many = [
        event("FailedScheduling", f"no {second}", second, f"by-{second}")
        for second in range(10, 60)
    ]
    lines = node_lines(workspace(by="karpenter"), NodeFacts([POD], many))
    assert [line[-5:] for line in lines if " by by-" in line] == [f"no {n}" for n in range(50, 60)]
    checks = [{"name": f"c{number}", "state": "Pending"} for number in range(50)]
    workload = {
        "metadata": {"name": "w", "ownerReferences": [{"uid": "u1"}]},
        "status": {"admissionChecks": checks},
    }
    lines = node_lines(workspace(by="kueue", queue="gpus"), NodeFacts([POD], workloads=[workload]))
    assert len([line for line in lines if "check c" in line]) == 5


@pytest.mark.parametrize(
    ("document", "fits"),
    [
        (workspace(2, 8, by="karpenter"), True),
        (workspace(2, 16, by="karpenter"), False),
        (workspace(1, 8, by="karpenter"), False),
        # Nothing is planned yet: at least one on each node.
        ({**workspace(2, by="karpenter"), "status": {}}, True),
    ],
)
def test_a_pool_is_asked_for_the_gpus_of_one_node(document: Json, fits: bool) -> None:
    key = "karpenter.k8s.aws/instance-gpu-count"
    nodes = pool({"key": key, "operator": "In", "values": ["4"]})
    lines = node_lines(document, NodeFacts([POD], pools=[nodes]))
    assert lines[1].endswith("makes such nodes") is fits, lines


def test_kueues_workload_its_checks_and_request_are_told() -> None:
    workload = {
        "metadata": {"name": "pod-chat-1", "uid": "w1", "ownerReferences": [{"uid": "u1"}]},
        "status": {
            "conditions": [told("QuotaReserved", "False", "couldn't assign flavors: insufficient quota")],
            "admissionChecks": [{"name": "dws", "state": "Pending", "message": ""}],
        },
    }  # fmt: skip
    request = {
        "metadata": {"name": "pod-chat-1-dws-1", "ownerReferences": [{"uid": "w1"}]},
        "status": {"conditions": [told("Provisioned", "False", "waiting for resources")]},
    }
    facts = NodeFacts([POD], workloads=[workload, {"metadata": {"name": "x"}}], requests=[request])
    assert node_lines(workspace(by="kueue", queue="gpus"), facts) == [
        "nodes: asked of kueue: chat-1 has no node",
        "  Workload pod-chat-1: QuotaReserved false (couldn't assign flavors: insufficient quota)",
        "    check dws: Pending",
        "    ProvisioningRequest pod-chat-1-dws-1: Provisioned false (waiting for resources)",
    ]


def test_nothing_is_said_while_every_server_has_its_node() -> None:
    assert node_lines(workspace(by="karpenter"), NodeFacts([PLACED], EVENTS, [pool()])) == []
    assert node_lines({**workspace(), "spec": 7}, NodeFacts([POD], EVENTS)) == []


class Answering(Kubectl):
    """A cluster of documents by path; the others can't be read for some reason."""

    def __init__(self, documents: dict[str, Json], error: type[Exception]) -> None:
        super().__init__()
        self.documents, self.error = documents, error
        self.asked: list[str] = []

    def get(self, path: str) -> Json:
        self.asked.append(path.partition("?")[0])
        found = self.documents.get(path.partition("?")[0])
        if found is None:
            raise self.error("no")
        return found


@pytest.mark.parametrize("error", [NotFound, AccessDenied, Unreachable])
def test_what_cannot_be_read_fails_nothing(error: type[Exception]) -> None:
    pods = {"/api/v1/namespaces/team/pods": {"items": [POD]}}
    for document in (workspace(by="karpenter"), workspace(by="kueue", queue="q"), workspace()):
        facts = node_facts(Answering(pods, error), document)
        assert node_lines(document, facts)[0].endswith("chat-1 has no node")
        assert node_facts(Answering({}, error), document) == NodeFacts([])


def test_a_worker_without_a_node_is_told_though_its_leader_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Cluster()
    for role, placed in ((names.SERVER, True), (names.WORKER, False), (names.PREWARM, False)):
        made.api.create({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": f"chat-{role}", "namespace": "team", "labels": names.selector("chat", role)},
            "spec": {"containers": [], **({"nodeName": "n1"} if placed else {})},
        })  # fmt: skip
    document = workspace(2, 8, by="karpenter")
    with ServedCluster(made) as url:
        point_kubectl_at(url, monkeypatch)
        facts = node_facts(Kubectl(), document)
    lines = node_lines(document, facts)
    assert lines[0] == "nodes: asked of karpenter: chat-worker has no node"


def test_only_what_the_provisioner_has_is_asked_for_in_the_version_that_is_served() -> None:
    documents: dict[str, Json] = {
        "/api/v1/namespaces/team/pods": {"items": [POD]},
        "/api/v1/namespaces/team/events": {"items": [EVENTS[0]]},
        "/apis/karpenter.sh": {"preferredVersion": {"version": "v1"}},
        "/apis/karpenter.sh/v1/nodepools": {"items": [pool()]},
        "/apis/karpenter.sh/v1/nodeclaims": {"items": CLAIMS},
    }
    cluster = Answering(documents, NotFound)
    facts = node_facts(cluster, workspace(by="karpenter"))
    assert (len(facts.pools), len(facts.claims)) == (1, 3)
    assert not any("kueue" in each for each in cluster.asked)
    placed = Answering({"/api/v1/namespaces/team/pods": {"items": [PLACED]}}, NotFound)
    assert node_facts(placed, workspace(by="karpenter")) == NodeFacts([PLACED])
    assert placed.asked == ["/api/v1/namespaces/team/pods"]
