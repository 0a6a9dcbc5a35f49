"""A node that goes is recognised by every sign that somebody gives of it, and by none that is only a warning."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workspace.controller.simulation import GPU
from workspace.controller.node_signs import Departure
from workspace.controller.nodes import KubeNode, eligible
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
        (node(**DELETED, labels=SPOT), Departure.INTERRUPTED),
        (node("karpenter.sh/disrupted", **DELETED, labels=SPOT), Departure.INTERRUPTED),
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


def test_a_spot_node_that_is_replaced_is_told_from_one_that_is_taken_back() -> None:
    """By what comes first, as the controller's cache sees it: the taint, or the deletion."""
    taint = "karpenter.sh/disrupted"
    courses = {
        Departure.DRAINED: [((), {}), ((taint,), {}), ((taint,), DELETED)],
        Departure.INTERRUPTED: [((), {}), ((), DELETED), ((taint,), DELETED)],
    }
    for departure, course in courses.items():
        found = None
        for taints, metadata in course:
            found = KubeNode.from_document(document(*taints, labels=SPOT, **metadata), found)
        assert found is not None
        assert found.departure is departure
    # That its instance ends after all is always told.
    ending = (taint, "aws-node-termination-handler/spot-itn")
    drained = KubeNode.from_document(document(taint, labels=SPOT))
    found = KubeNode.from_document(document(*ending, labels=SPOT), drained)
    assert found.departure is Departure.INTERRUPTED


def test_a_node_that_goes_takes_no_server_that_tolerates_everything() -> None:
    resources = Resources.model_validate({"tolerations": [{"operator": "Exists"}]})
    assert eligible([node("dedicated")], resources, gpus=1)
    for key in ("karpenter.sh/disrupted", "ToBeDeletedByClusterAutoscaler"):
        assert not eligible([node(key)], resources, gpus=1)


def test_a_node_that_is_not_registered_takes_no_server_yet_and_goes_nowhere() -> None:
    found = node("karpenter.sh/unregistered", effect="NoExecute")
    assert not found.usable
    assert found.departure is Departure.NONE
