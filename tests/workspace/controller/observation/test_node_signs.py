"""A node that goes is recognised by every sign that somebody gives of it, and by none that is only a warning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workspace.controller.simulation import GPU
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.cluster.watches import EVENTS
from workspace.controller.observation.interruptions import Interruptions
from workspace.controller.observation.node_signs import Departure
from workspace.controller.observation.nodes import KubeNode, eligible
from workspace.controller.servers.replacements import departures
from workspace.schema import Resources

Json = dict[str, Any]
SPOT = {"karpenter.sh/capacity-type": "spot"}
DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


def document(
    *taints: str, labels: Json | None = None, unschedulable: bool = False, effect: str = "NoSchedule", **metadata: Any
) -> Json:  # fmt: skip
    return {
        "metadata": {"name": "n", "labels": labels or {}, **metadata},
        "spec": {
            "unschedulable": unschedulable,
            "taints": [{"key": key, "effect": effect} for key in taints],
        },
        "status": {
            "allocatable": {GPU: "1"}, "conditions": [{"type": "Ready", "status": "True"}],
        },
    }  # fmt: skip


def node(*taints: str, **more: Any) -> KubeNode:
    return KubeNode.from_document(document(*taints, **more))


@pytest.mark.parametrize(
    ("found", "departure"),
    [
        (node(), Departure.NONE),
        (node("dedicated"), Departure.NONE),
        (node(unschedulable=True), Departure.DRAINED),
        (node(unschedulable=True, labels=SPOT), Departure.DRAINED),
        (node("karpenter.sh/disrupted"), Departure.DRAINED),
        (node("karpenter.sh/disrupted", labels=SPOT), Departure.DRAINED),
        (node(**DELETED), Departure.DRAINED),
        (node(**DELETED, labels=SPOT), Departure.DRAINED),
        (node("karpenter.sh/disrupted", **DELETED, labels=SPOT), Departure.DRAINED),
        (
            node("karpenter.sh/disrupted", "aws-node-termination-handler/spot-itn", labels=SPOT),
            Departure.INTERRUPTED,
        ),
        (node("ToBeDeletedByClusterAutoscaler"), Departure.DRAINED),
        (
            node("DeletionCandidateOfClusterAutoscaler", effect="PreferNoSchedule"),
            Departure.NONE,
        ),
        (node("aws-node-termination-handler/spot-itn"), Departure.INTERRUPTED),
        (node("aws-node-termination-handler/scheduled-maintenance"), Departure.DRAINED),
        (node("aws-node-termination-handler/asg-lifecycle-termination"), Departure.DRAINED),
        (node("aws-node-termination-handler/rebalance-recommendation"), Departure.NONE),
        (
            node(
                "aws-node-termination-handler/rebalance-recommendation",
                "aws-node-termination-handler/spot-itn",
            ),
            Departure.INTERRUPTED,
        ),
        (node("cloud.google.com/impending-node-termination"), Departure.INTERRUPTED),
        (node("remediator.aks.microsoft.com/unschedulable"), Departure.DRAINED),
        (node("remediator.kubernetes.azure.com/unschedulable"), Departure.DRAINED),
    ],
)
def test_every_sign_is_known(found: KubeNode, departure: Departure) -> None:
    assert found.departure is departure
    assert found.usable == (departure is Departure.NONE)


def told(reason: str = "SpotInterrupted", *, kind: str = "Node", uid: str = "u1") -> Json:
    """As Karpenter's AWS provider writes it: one about the Node, and one about its NodeClaim."""
    return {
        "kind": "Event", "metadata": {"name": f"n.{reason}", "namespace": "default"}, "reason": reason,
        "involvedObject": {"kind": kind, "name": "n", "uid": uid},
        "message": "Spot interruption warning was triggered", "source": {"component": "karpenter"},
    }  # fmt: skip


def shown(*seen: Json) -> Departure:
    """What a controller takes a node for that has seen these objects."""
    cache = WatchCache()
    for each in seen:
        cache.put(each)
    (found,) = cache.nodes()
    return found.departure


def going(**metadata: Any) -> Json:
    found = document("karpenter.sh/disrupted", labels=SPOT, uid="u1", **DELETED, **metadata)
    return {**found, "kind": "Node"}


@pytest.mark.parametrize(
    ("event", "departure"),
    [
        (told(), Departure.INTERRUPTED),
        (told("TerminatingOnInterruption"), Departure.DRAINED),  # also for scheduled changes
        (told("SpotRebalanceRecommendation"), Departure.DRAINED),
        (told(kind="NodeClaim"), Departure.DRAINED),
        (told(uid="u2"), Departure.DRAINED),  # of a node before, of the same name
    ],
)
def test_only_karpenters_event_tells_a_spot_node_that_is_taken_back(
    event: Json, departure: Departure
) -> None:
    """Whether it comes before the deletion or after it, and for a controller that started since."""
    stays = {**document(labels=SPOT, uid="u1"), "kind": "Node"}
    assert shown(going()) is Departure.DRAINED
    assert shown(going(), event) is departure
    assert shown(event, going()) is departure
    assert shown(stays, event, going()) is departure
    assert shown(stays, event) is Departure.NONE


def test_the_workspaces_hear_of_an_interruption_once() -> None:
    cache = WatchCache()
    key = ("team", "chat")
    cache.put({"kind": "Workspace", "metadata": {"namespace": "team", "name": "chat"}, "spec": {}})
    cache.put(going())
    assert cache.put(told()) == {key}
    assert cache.put(told()) == set()
    assert cache.put(going()) == set()


@given(uids=st.lists(st.one_of(st.text(max_size=80), st.integers(), st.none()), max_size=8))
def test_any_event_is_read_and_known_is_what_was_told(uids: list[Any]) -> None:
    known = Interruptions()
    for uid in uids:
        known.put({"reason": "SpotInterrupted", "involvedObject": {"kind": "Node", "uid": uid}})
    sound = {uid for uid in uids if isinstance(uid, str) and 0 < len(uid) <= 64}
    assert all(uid in known for uid in sound)
    assert not any(uid in known for uid in uids if isinstance(uid, str) and uid not in sound)


def test_the_events_are_watched() -> None:
    assert "involvedObject.kind=Node,reason=SpotInterrupted" in EVENTS


@pytest.mark.parametrize(
    "key",
    [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        "node.cilium.io/agent-not-ready",
        "ebs.csi.aws.com/agent-not-ready",
        "cache.weightyard.dev/starting",
        "readiness.k8s.io/weightyard-pinned-ready",
        "karpenter.sh/unregistered",
    ],
)
def test_a_taint_that_passes_moves_nothing_and_hides_no_other(key: str) -> None:
    def leaving(*taints: str) -> frozenset[str]:
        return departures([node(*taints)], Resources(), gpus=1).leaving

    assert leaving(key) == frozenset()
    assert leaving(key, "ours.example/maintenance") == {"n"}


def test_a_node_that_goes_takes_no_server_that_tolerates_everything() -> None:
    resources = Resources.model_validate({"tolerations": [{"operator": "Exists"}]})
    assert eligible([node("dedicated")], resources, gpus=1)
    for key in ("karpenter.sh/disrupted", "ToBeDeletedByClusterAutoscaler"):
        assert not eligible([node(key)], resources, gpus=1)


def test_a_node_that_is_not_registered_takes_no_server_yet_and_goes_nowhere() -> None:
    found = node("karpenter.sh/unregistered", effect="NoExecute")
    assert not found.usable
    assert found.departure is Departure.NONE
