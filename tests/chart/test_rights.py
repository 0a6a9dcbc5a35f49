"""Who may do what in the cluster: roles, and the admission policies that narrow them, evaluated."""

from __future__ import annotations

from typing import Any

import celpy
import pytest
import yaml
from celpy.adapter import json_to_cel
from celpy.celtypes import MapType, StringType

from tests.chart.charting import CHART, find, helm, render
from tests.chart.matrix import MATRIX
from tests.workspace.openapi import OLDEST
from weightyard.commands.cleanup import cleanup
from weightyard.crds import definitions

Json = dict[str, Any]
AGENT = "system:serviceaccount:weightyard-system:weightyard-agent"
CONTROLLER = "system:serviceaccount:weightyard-system:weightyard-controller"
NODE_NAME = "authentication.kubernetes.io/node-name"


def rules_of(objects: list[Json], account: str) -> list[tuple[str | None, Json]]:
    """Every rule that is bound to a ServiceAccount, with its namespace."""
    found: list[tuple[str | None, Json]] = []
    for binding in objects:
        if account not in {each["name"] for each in binding.get("subjects", ())}:
            continue
        kind, namespace = binding["roleRef"]["kind"], binding["metadata"].get("namespace")
        (role,) = [
            each for each in objects
            if (each["kind"], each["metadata"]["name"], each["metadata"].get("namespace"))
            == (kind, binding["roleRef"]["name"], namespace)
        ]  # fmt: skip
        found += [(namespace, rule) for rule in role["rules"]]
    return found


def writes(rules: list[tuple[str | None, Json]]) -> set[str]:
    """What they may change, as group/resource."""
    return {
        f"{group}/{resource}"
        for _, rule in rules
        if set(rule["verbs"]) - {"get", "list", "watch"}
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


@pytest.mark.parametrize("case", MATRIX)
def test_nobody_may_do_everything(case: str) -> None:
    for each in render(MATRIX[case]):
        for rule in each.get("rules") or ():
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}


def test_the_agent_writes_nothing_but_its_reports() -> None:
    rules = rules_of(render(MATRIX["wanted"]), "weightyard-agent")
    assert writes(rules) == {"weightyard.dev/nodecaches", "weightyard.dev/nodecaches/status"}


def test_the_agent_reads_only_the_secrets_that_are_named() -> None:
    def secrets(objects: list[Json]) -> list[tuple[str | None, Any, Any]]:
        rules = rules_of(objects, "weightyard-agent")
        return [
            (w, r.get("resourceNames"), r["verbs"]) for w, r in rules if "secrets" in r["resources"]
        ]

    assert secrets(render()) == []
    assert secrets(render(MATRIX["wanted"])) == [("weightyard-system", ["team"], ["get"])]  # fmt: skip


def test_the_controller_reads_no_secret_unless_a_namespace_is_named() -> None:
    def secrets(objects: list[Json]) -> list[tuple[str | None, Any, Any]]:
        rules = rules_of(objects, "weightyard-controller")
        return [
            (w, r.get("resourceNames"), r["verbs"]) for w, r in rules if "secrets" in r["resources"]
        ]

    assert secrets(render()) == []
    found = secrets(render(MATRIX["private-registry"]))
    assert found == [("team-a", ["pull"], ["get"]), ("team-b", None, ["get"])]  # fmt: skip


def test_the_hook_of_upgrades_may_change_our_definitions_alone() -> None:
    objects = render()
    rules = rules_of(objects, "weightyard-crds")
    assert writes(rules) == {"apiextensions.k8s.io/customresourcedefinitions"}
    named = [rule["resourceNames"] for _, rule in rules if rule["verbs"] != ["create"]]
    assert [set(each) for each in named] == [set(definitions())]
    job = find(objects, "Job", "-crds")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["crds", "--apply"]
    assert not [each for each in render(MATRIX["wanted"]) if each["metadata"]["name"].endswith("-crds")]  # fmt: skip


def test_the_hook_of_removals_unmarks_nodes_and_stops_the_controller() -> None:
    objects = render()
    rules = rules_of(objects, "weightyard-cleanup")
    assert writes(rules) == {"/nodes", "apps/deployments"}
    names = {n for _, r in rules if "deployments" in r["resources"] for n in r["resourceNames"]}
    assert names == {find(objects, "Deployment")["metadata"]["name"]}
    (container,) = find(objects, "Job", "-cleanup")["spec"]["template"]["spec"]["containers"]
    options = [option for parameter in cleanup.params for option in parameter.opts]
    assert container["args"][0] == cleanup.name
    assert {each.partition("=")[0] for each in container["args"][1:]} <= set(options)
    assert "--force" not in container["args"]


def test_hooks_leave_nothing_behind() -> None:
    for each in render():
        annotations = each["metadata"].get("annotations", {})
        if "helm.sh/hook" in annotations:
            assert "hook-succeeded" in annotations["helm.sh/hook-delete-policy"]


# The admission policies, evaluated as a server does


def refusals(policy: Json, request: Json, object_: Json | None, old: Json | None) -> list[str]:
    """What a policy refuses, in words or by its expression; nothing where it doesn't match."""
    environment = celpy.Environment()
    seen: Json = {"request": request, "object": object_, "oldObject": old}

    def value(expression: str, variables: Json) -> Any:
        program = environment.program(environment.compile(expression))
        named = MapType({StringType(name): each for name, each in variables.items()})
        given = {name: json_to_cel(each) for name, each in seen.items()}
        return program.evaluate({**given, "variables": named})

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
def test_an_agent_writes_the_report_of_its_own_node_alone(
    operation: str, who: Json, name: str, allowed: bool
) -> None:
    policy = find(render(), "ValidatingAdmissionPolicy", "-agent")
    document = {"metadata": {"name": name}}
    request = {"operation": operation, "userInfo": who, "name": name}
    new, old = (None if operation == "DELETE" else document), (None if operation == "CREATE" else document)  # fmt: skip
    assert (refusals(policy, request, new, old) == []) == allowed


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


@pytest.mark.parametrize(
    ("kube", "setting", "there"),
    [(OLDEST, "auto", 0), ("1.36.0", "auto", 2), (OLDEST, "always", 2), ("1.36.0", "never", 0)],
)
def test_policies_are_there_where_the_cluster_has_them(kube: str, setting: str, there: int) -> None:
    values = {"agent": {"admissionPolicy": setting}, "controller": {"admissionPolicy": setting}}
    objects = render(values, kube=kube)
    policies = [each for each in objects if each["kind"] == "ValidatingAdmissionPolicy"]
    bindings = [each for each in objects if each["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert [len(policies), len(bindings)] == [there, there]
    assert {e["spec"]["policyName"] for e in bindings} == {e["metadata"]["name"] for e in policies}


def test_crds_of_the_chart_are_this_versions() -> None:
    shown = [each for each in yaml.safe_load_all(helm("show", "crds", str(CHART))) if each]
    assert {each["metadata"]["name"]: each for each in shown} == definitions()
