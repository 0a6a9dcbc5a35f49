"""Requests reach the Workspace's own servers: whatever others' objects are called, and whichever versions run."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_agent.api.kube.refusals import Conflict
from modelimage.errors import AccessDenied, Busy, RemoteRefused, WeightyardError
from tests.examples import examples
from tests.workspace import samples
from tests.workspace.controller.direct import DirectApi
from tests.workspace.controller.living import make_runner
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_reconcile import Json, cluster, condition, deployment
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.observation import revisions
from workspace.controller.observation.objects import container_ports, has_labels
from workspace.controller.servers.prewarm_pods import prewarm_pod
from workspace.render import names
from workspace.render.builder_objects import build_job
from workspace.render.deployments import deployment as render
from workspace.render.kubernetes import surrounding_objects
from workspace.render.routing import SystemSettings

SCALED: Json = {"min": 0, "max": 2}
TAKEN = [
    ("Service", NAME), ("Service", names.server_service(NAME)), ("NetworkPolicy", NAME),
    ("NetworkPolicy", names.activator(NAME)), ("ServiceAccount", NAME), ("Deployment", NAME),
    ("Deployment", names.activator(NAME)),
]  # fmt: skip
RUNNING = ("Deployment", "Service", "Pod")
WORKSPACE_NAMES = st.from_regex(r"\A[a-z](-?[a-z0-9]){0,9}\Z") | st.sampled_from(
    ["e1", "e1-server", "e1-activator", "e1-warm", "e1-b", "e1-server-server"]
)


def everything(name: str) -> set[tuple[str, str]]:
    """Kind and name of all that a Workspace may become, of fixed names."""
    workspace = samples.workspace(
        name, scale=SCALED, tenancy={"quota": {"pods": "1"}, "limits": {"cpu": "1"}}
    )
    source = samples.workspace(name, model={"hub": "a/b", "build": {"to": "r.example/a/b"}})
    version = revisions.new_revision(workspace, samples.release(workspace), number=1)
    found = [
        *surrounding_objects(workspace, SystemSettings()),
        render(
            workspace, version.template, replicas=1, startup_seconds=1, environment=SystemSettings()
        ),
        revisions.to_document(workspace, version),
        prewarm_pod(workspace, version, "n1"),
        build_job(source, SystemSettings()),
    ]
    return {(each["kind"], each["metadata"]["name"]) for each in found}


@given(one=WORKSPACE_NAMES, other=WORKSPACE_NAMES)
@settings(max_examples=examples(60), deadline=None)
def test_two_workspaces_never_want_the_same_object(one: str, other: str) -> None:
    assert one == other or not everything(one) & everything(other)
    assert all(len(name) <= 63 for _, name in everything(one))


def theirs(kind: str, name: str) -> Json:
    return {
        "apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "selector": {"app": "other"}, "ports": [{"port": 80}], "podSelector": {},
            "template": {"metadata": {"labels": {}}, "spec": {"containers": []}},
        },
    }  # fmt: skip


def running(made: Cluster) -> list[Json]:
    return [
        each for kind in RUNNING for each in made.api.list(kind, NAMESPACE)
        if names.WORKSPACE in (each["metadata"].get("labels") or {})
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), TAKEN)
def test_with_a_conflict_nothing_starts_and_the_condition_says_with_what(
    kind: str, name: str
) -> None:
    made = cluster("n1", scale=SCALED)
    made.wanted = 1
    made.api.create(theirs(kind, name))
    before = made.api.get(kind, NAMESPACE, name)
    for _ in range(6):
        made.reconcile()
        made.schedule()
        made.run_kubelets()
    assert running(made) == []
    assert made.api.get(kind, NAMESPACE, name) == before
    ready = condition(made, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "NameConflict")
    assert f"{kind} {name}" in ready["message"]
    made.api.delete(kind, NAMESPACE, name)
    made.settle()
    assert condition(made, "Ready")["status"] == "True"


@pytest.mark.parametrize(("kind", "name"), TAKEN)
def test_a_conflict_that_comes_later_switches_nothing(kind: str, name: str) -> None:
    made = cluster("n1", "n2", scale=SCALED)
    made.wanted = 1
    made.settle()
    made.api.delete(kind, NAMESPACE, name)
    made.api.create(theirs(kind, name))
    before = running(made)
    made.wanted = 0
    made.change_spec(model={"image": "registry.example/team/llama:v2"}, runtime={"port": 9000})
    for _ in range(4):
        made.reconcile()
        made.schedule()
    assert running(made) == before


def test_a_conflict_that_routes_nothing_stops_nothing() -> None:
    made = cluster("n1", tenancy={"quota": {"pods": "9"}})
    made.api.create(theirs("ResourceQuota", NAME))
    made.settle()
    assert len(made.ready_servers()) == 1
    assert condition(made, "Ready")["reason"] == "NameConflict"


def test_pods_of_an_earlier_workspace_of_this_name_are_neither_counted_nor_reached() -> None:
    made = cluster("n1", "n2", scale=SCALED)
    made.wanted = 1
    made.settle()
    (pod,) = made.ready_servers()
    # As a deletion with --cascade=orphan leaves them.
    left = {**pod, "metadata": {**pod["metadata"], "name": "left", "annotations": {}}}
    left["metadata"]["labels"] = {**pod["metadata"]["labels"], names.UID: "another"}
    made.api.create(left)
    made.reconcile()
    assert made.api.get("Workspace", NAMESPACE, NAME)["status"]["readyReplicas"] == 1
    for each in made.api.list("Service", NAMESPACE):
        assert not has_labels(left, each["spec"]["selector"])
    assert has_labels(pod, made.api.get("Service", NAMESPACE, NAME)["spec"]["selector"])


def test_a_deployment_from_before_selectors_had_the_uid_keeps_its_own() -> None:
    made = cluster("n1", "n2")
    made.settle()
    old = names.selector(NAME, names.SERVER)
    made.api.update(
        "Deployment", NAMESPACE, NAME, lambda d: d["spec"].update(selector={"matchLabels": old})
    )
    for pod in made.servers():
        made.api.update(
            "Pod",
            NAMESPACE,
            pod["metadata"]["name"],
            lambda d: d["metadata"]["labels"].pop(names.UID),
        )
    made.settle()
    assert deployment(made)["spec"]["selector"]["matchLabels"] == old
    assert made.api.get("Service", NAMESPACE, NAME)["spec"]["selector"] == old
    assert condition(made, "Ready")["status"] == "True"


EVENTS = st.sampled_from(
    [{"runtime": {"port": 9000}}, {"runtime": {"port": 7000}}, {"runtime": None},
     {"model": {"image": "registry.example/team/llama:v2"}}, {"resources": {"gpuMemory": "2Gi"}},
     {"resources": {"gpu": "L4"}}, {"resources": {"gpu": "L4", "nodeSelector": {"no": "node"}}},
     "registry", "step", "step", "step"]
)  # fmt: skip


@given(events=st.lists(EVENTS, max_size=14))
@settings(max_examples=examples(40), deadline=None)
def test_every_server_that_runs_can_be_reached_at_its_own_port(events: list[Any]) -> None:
    made = cluster("n1", "n2", scale=SCALED)
    made.wanted = 1
    made.settle()
    for event in events:
        if event == "registry":
            made.registry_up = not made.registry_up
        elif event == "step":
            made.step()
        else:
            made.change_spec(**event)
        made.reconcile()
        policy = made.api.get("NetworkPolicy", NAMESPACE, NAME)["spec"]["ingress"][0]
        admitted = {each["port"] for each in policy["ports"]}
        assert {port for pod in made.servers() for port in container_ports(pod["spec"])} <= admitted
        assert len(made.ready_servers()) >= 1


def test_a_port_is_closed_when_its_last_server_is_gone() -> None:
    made = cluster("n1", "n2", replicas=1)
    made.settle()
    made.change_spec(runtime={"port": 9000})
    made.settle()
    policy = made.api.get("NetworkPolicy", NAMESPACE, NAME)["spec"]["ingress"][0]
    assert [each["port"] for each in policy["ports"]] == [9000]


def test_an_edited_port_does_not_restart_the_activator() -> None:
    made = cluster("n1", scale=SCALED)
    made.settle()
    before = made.api.get("Deployment", NAMESPACE, names.activator(NAME))["spec"]
    made.change_spec(runtime={"port": 9000})
    made.settle()
    assert made.api.get("Deployment", NAMESPACE, names.activator(NAME))["spec"] == before


def test_whoever_may_not_reach_the_servers_may_not_reach_the_activator() -> None:
    made = cluster(
        "n1", scale=SCALED, tenancy={"networkPolicy": {"allowFromNamespaces": {"a": "b"}}}
    )
    made.settle()
    own, activator = (
        made.api.get("NetworkPolicy", NAMESPACE, each)["spec"]
        for each in (NAME, names.activator(NAME))
    )
    assert activator["ingress"][0]["from"] == own["ingress"][0]["from"]
    (pod,) = made.api.list("Pod", NAMESPACE, names.selector(NAME, names.ACTIVATOR))
    assert has_labels(pod, activator["podSelector"]["matchLabels"])
    assert container_ports(pod["spec"]) == [
        each["port"] for each in activator["ingress"][0]["ports"]
    ]


@pytest.mark.parametrize(
    "fault", [AccessDenied("no right"), RemoteRefused("a webhook says no"), Busy("changed")]
)
def test_without_its_policy_nothing_starts(fault: WeightyardError) -> None:
    made = cluster("n1", scale=SCALED)
    direct = DirectApi(made.api)
    runner = make_runner(cast(KubernetesApi, direct))
    for kind in ("Workspace", "Node"):
        for each in made.api.list(kind):
            runner.seen(each)
    conflict = Conflict(fault.message) if isinstance(fault, Busy) else fault
    direct.faults.append((conflict, False))
    with suppress(Conflict):
        asyncio.run(runner.reconcile((NAMESPACE, NAME)))
    kinds = {kind for kind, _, _ in made.api.objects}
    assert not kinds & {"Deployment", "Service"}
    asyncio.run(runner.reconcile((NAMESPACE, NAME)))
    assert {"Deployment", "Service", "NetworkPolicy"} <= {kind for kind, _, _ in made.api.objects}
