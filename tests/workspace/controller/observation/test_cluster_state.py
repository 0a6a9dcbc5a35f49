"""Which nodes should hold a version: as many as its replicas span, however far their pods have come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from modelimage.digest import Digest
from tests.workspace import samples
from workspace.controller.observation.cluster_state import cached_state
from workspace.controller.observation.nodes import KubeNode
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.revisions import Revision
from workspace.render import names
from workspace.render.routing import SystemSettings
from workspace.schema import Resources

Json = dict[str, Any]

KEY = Digest.parse("sha256:" + "a" * 64)
VERSION = "v1"


def revision(nodes: int) -> Revision:
    """A version whose replicas span some nodes."""
    resources = Resources(gpu="L4", nodes=nodes)
    return cast(
        Revision,
        SimpleNamespace(key=KEY, id=VERSION, node_gpus=1, nodes=nodes, resources=resources),
    )


# How far a server has come: without a node, placed, with its volume mounted, ready.
STAGES = ("pending", "placed", "mounted", "ready")


def node(name: str, *, cordoned: bool) -> KubeNode:
    document = {
        "kind": "Node", "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
        "spec": {"unschedulable": cordoned},
        "status": {
            "allocatable": {"nvidia.com/gpu": "8", "cpu": "64", "memory": "512Gi"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }  # fmt: skip
    return KubeNode.from_document(document)


def server(number: int, stage: str, where: str, role: str) -> Json:
    labels = {**names.selector("w", role, "u"), names.REVISION: VERSION}
    pod: Json = {"kind": "Pod", "metadata": {"name": f"p{number}", "labels": labels}, "spec": {}}
    if stage != "pending":
        pod["spec"]["nodeName"] = where
    if stage in ("mounted", "ready"):
        pod["status"] = {
            "containerStatuses": [{"state": {"running": {}}}],
            "conditions": [{"type": "Ready", "status": str(stage == "ready")}],
        }
    return pod


@given(
    cordoned=st.lists(st.booleans(), min_size=1, max_size=6),
    servers=st.lists(st.tuples(st.sampled_from(STAGES), st.integers(0, 5)), max_size=6),
    replicas=st.integers(0, 6), span=st.integers(1, 3),
)  # fmt: skip
def test_no_more_nodes_are_asked_for_than_replicas_need(
    cordoned: list[bool], servers: list[tuple[str, int]], replicas: int, span: int
) -> None:
    nodes = tuple(node(f"n{number}", cordoned=each) for number, each in enumerate(cordoned))
    pods = tuple(
        server(
            number, stage, f"n{place % len(nodes)}", names.WORKER if number % span else names.SERVER
        )
        for number, (stage, place) in enumerate(servers)
    )
    document = samples.document("w", replicas=replicas)
    document["metadata"]["uid"] = "u"
    observed = Observed(document, pods, nodes, "now", SystemSettings())
    found = cached_state(revision(span), observed, replicas=replicas)
    wanted = replicas * span
    usable = {each.name for each, out in zip(nodes, cordoned, strict=True) if not out}
    holding = {
        pod["spec"]["nodeName"]
        for pod, (stage, _) in zip(pods, servers, strict=True)
        if stage in ("mounted", "ready")
    } & usable
    assert holding <= set(found.chosen) <= usable
    # Nodes that already run it may be more than the replicas, while it scales down.
    assert len(found.chosen) <= max(span, wanted, len(holding))
    placed = [
        pod
        for pod, (stage, _) in zip(pods, servers, strict=True)
        if stage in ("mounted", "ready") and pod["spec"]["nodeName"] in usable
    ]
    missing = max(0, wanted - len(placed))
    assert len(found.chosen) >= min(len(usable), len(holding) + missing)
