"""The admission policies that narrow what the agent and the controller may do, evaluated as an API server does."""

from __future__ import annotations

from typing import Any

import pytest
from celpy.celtypes import MapType, StringType

from tests import cel
from tests.chart.charting import find, render
from tests.workspace.openapi import NEWEST, OLDEST, definitions

Json = dict[str, Any]
AGENT = "system:serviceaccount:weightyard-system:weightyard-agent"
CONTROLLER = "system:serviceaccount:weightyard-system:weightyard-controller"
NODE_NAME = "authentication.kubernetes.io/node-name"


def refusals(policy: Json, request: Json, object_: Json | None, old: Json | None) -> list[str]:
    """What a policy refuses, in words or by its expression; nothing where it doesn't match."""
    seen: Json = {"request": request, "object": object_, "oldObject": old}

    def value(expression: str, variables: Json) -> Any:
        named = MapType({StringType(name): each for name, each in variables.items()})
        return cel.evaluate(expression, seen, variables=named)

    if not all(value(each["expression"], {}) for each in policy["spec"]["matchConditions"]):
        return []
    variables: Json = {}
    for each in policy["spec"].get("variables", ()):
        variables[each["name"]] = value(each["expression"], variables)
    return [
        each.get("message") or str(value(each["messageExpression"], variables))
        for each in policy["spec"]["validations"]
        if not value(each["expression"], variables)
    ]


def user(name: str, node: str | None = None) -> Json:
    extra = {} if node is None else {NODE_NAME: [node]}
    return {"username": name, "extra": extra}


@pytest.mark.parametrize(
    ("operation", "who", "name", "allowed"),
    [
        ("CREATE", user(AGENT, "n1"), "n1", True),
        ("UPDATE", user(AGENT, "n1"), "n1", True),
        ("DELETE", user(AGENT, "n1"), "n1", True),
        ("CREATE", user(AGENT, "n1"), "n2", False),
        ("UPDATE", user(AGENT, "n1"), "n2", False),
        ("DELETE", user(AGENT, "n1"), "n2", False),
        ("UPDATE", user(AGENT), "n1", False),
        ("DELETE", user("system:serviceaccount:kube-system:generic-garbage-collector"), "n1", True),
    ],
)
@pytest.mark.parametrize(("resource", "prefix"), [("nodecaches", ""), ("leases", "agent-")])
def test_an_agent_writes_the_report_and_the_heartbeat_of_its_own_node_alone(
    resource: str, prefix: str, operation: str, who: Json, name: str, allowed: bool
) -> None:
    policy = find(render(), "ValidatingAdmissionPolicy", "-agent")
    name = prefix + name
    document = {"metadata": {"name": name}}
    request = {
        "operation": operation, "userInfo": who, "name": name, "resource": {"resource": resource},
    }  # fmt: skip
    new, old = (None if operation == "DELETE" else document), (None if operation == "CREATE" else document)  # fmt: skip
    assert (refusals(policy, request, new, old) == []) == allowed


def test_an_agent_cant_take_the_leaders_lease() -> None:
    policy = find(render(), "ValidatingAdmissionPolicy", "-agent")
    lease = {"metadata": {"name": "weightyard-controller"}}
    request = {
        "operation": "UPDATE", "userInfo": user(AGENT, "weightyard-controller"), "name": "weightyard-controller",
        "resource": {"resource": "leases"},
    }  # fmt: skip
    assert refusals(policy, request, lease, lease)


def node(
    *, labels: Json | None = None, annotations: Json | None = None, taints: list[Json] | None = None, **spec: Any
) -> Json:  # fmt: skip
    metadata = {"name": "n1", "labels": labels, "annotations": annotations}
    spec |= {"taints": taints}
    return {
        "metadata": {name: each for name, each in metadata.items() if each is not None},
        "spec": {name: each for name, each in spec.items() if each is not None},
    }


STARTING = {"key": "cache.weightyard.dev/starting", "effect": "NoSchedule"}
GPU = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
OURS = {"cache.weightyard.dev/m.0123456789ab": "ready"}
ZONE = {"topology.kubernetes.io/zone": "a"}


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        (node(labels=ZONE), node(labels=ZONE | OURS), True),
        (node(labels=ZONE | OURS), node(labels=ZONE), True),
        (node(), node(annotations=OURS), True),
        (node(taints=[GPU, STARTING]), node(taints=[GPU]), True),
        (node(taints=[STARTING]), node(), True),
        (node(labels=ZONE), node(labels={**ZONE, "a": "b"}), False),
        (node(labels=ZONE), node(labels={"topology.kubernetes.io/zone": "b"}), False),
        (node(labels=ZONE), node(labels={}), False),
        (node(annotations={"a": "b"}), node(), False),
        (node(taints=[GPU, STARTING]), node(taints=[STARTING]), False),
        (node(), node(taints=[GPU]), False),
        (node(), node(unschedulable=True), False),
    ],
)
def test_the_controller_marks_nodes_and_changes_nothing_else(
    old: Json, new: Json, allowed: bool
) -> None:
    policy = find(render(), "ValidatingAdmissionPolicy", "-controller")
    request = {"operation": "UPDATE", "userInfo": user(CONTROLLER), "name": "n1"}
    assert (refusals(policy, request, new, old) == []) == allowed
    other = {**request, "userInfo": user("system:node:n1")}
    assert refusals(policy, other, new, old) == []


PINNED = {"type": "cache.weightyard.dev/PinnedReady", "status": "True"}
READY = {"type": "Ready", "status": "True"}
CPUS = {"capacity": {"cpu": "8"}, "allocatable": {"cpu": "8"}}


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ({}, {"conditions": [PINNED]}, True),
        ({"conditions": [READY]}, {"conditions": [READY, PINNED]}, True),
        ({"conditions": [READY, PINNED]}, {"conditions": [READY]}, True),
        ({"conditions": [PINNED], **CPUS}, {"conditions": [{**PINNED, "status": "False"}], **CPUS}, True),
        ({"conditions": [READY]}, {"conditions": [PINNED]}, False),
        ({"conditions": [READY]}, {"conditions": [{**READY, "status": "False"}]}, False),
        ({}, {"conditions": [READY]}, False),
        (CPUS, {**CPUS, "allocatable": {"cpu": "9"}}, False),
        (CPUS, {"capacity": {"cpu": "8"}}, False),
        ({}, CPUS, False),
        ({"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}, {"addresses": []}, False),
    ],
)  # fmt: skip
def test_of_a_nodes_status_the_controller_changes_its_own_condition_alone(
    old: Json, new: Json, allowed: bool
) -> None:
    policy = find(
        render({"controller": {"nodeConditions": True}}), "ValidatingAdmissionPolicy", "-controller"
    )
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["nodes", "nodes/status"]
    request = {"operation": "UPDATE", "userInfo": user(CONTROLLER), "name": "n1"}
    found = refusals(policy, request, {**node(), "status": new}, {**node(), "status": old})
    assert (found == []) == allowed
    # The metadata comes with it.
    labelled = {**node(labels=ZONE), "status": old}
    assert refusals(policy, request, labelled, {**node(), "status": old})


def test_every_other_field_of_a_nodes_status_is_guarded() -> None:
    """Whichever Kubernetes knows: a value may come, change and go by others alone."""
    policy = find(
        render({"controller": {"nodeConditions": True}}), "ValidatingAdmissionPolicy", "-controller"
    )
    request = {"operation": "UPDATE", "userInfo": user(CONTROLLER), "name": "n1"}
    known = definitions(NEWEST)["io.k8s.api.core.v1.NodeStatus"]["properties"]
    for name in set(known) - {"conditions"}:
        for old, new in (({}, {name: "a"}), ({name: "a"}, {name: "b"}), ({name: "a"}, {})):
            found = refusals(policy, request, {**node(), "status": new}, {**node(), "status": old})
            assert found == [f"the controller may not change {name} of nodes"]


@pytest.mark.parametrize(
    ("kube", "setting", "there"),
    [(OLDEST, "auto", 0), ("1.36.0", "auto", 3), (OLDEST, "always", 3), ("1.36.0", "never", 0)],
)
def test_policies_are_there_where_the_cluster_has_them(kube: str, setting: str, there: int) -> None:
    values = {"agent": {"admissionPolicy": setting}, "controller": {"admissionPolicy": setting}}
    objects = render(values, kube=kube)
    policies = [each for each in objects if each["kind"] == "ValidatingAdmissionPolicy"]
    bindings = [each for each in objects if each["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert [len(policies), len(bindings)] == [there, there]
    assert {e["spec"]["policyName"] for e in bindings} == {e["metadata"]["name"] for e in policies}
