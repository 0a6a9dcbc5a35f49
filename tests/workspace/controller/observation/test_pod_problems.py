"""Why a server doesn't start, as the Workspace's conditions tell it, in the words of those who know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import RemoteRefused
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_reconcile import Json, cluster, condition, status
from workspace.controller.observation.pod_problems import pod_problem, worst_problem
from workspace.render import names
from workspace.render.routing import SystemSettings

PLACED = {"type": "PodScheduled", "status": "True"}
NOT_READY = {"type": "Ready", "status": "False"}
NEXT = {"model": {"image": "registry.example/team/llama:v2"}}


def waiting(reason: str, message: str = "", **more: Any) -> Json:
    container = {"name": "server", "image": "vllm:x", "restartCount": 0} | more
    container["state"] = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "conditions": [PLACED, NOT_READY], "containerStatuses": [container]}


def ended(reason: str, code: int, message: str = "", *, restarts: int = 3) -> Json:
    last = {"terminated": {"reason": reason, "exitCode": code, "message": message}}
    return waiting("CrashLoopBackOff", "back-off", restartCount=restarts, lastState=last)


UNSCHEDULED = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
         "message": "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."}
    ],
}  # fmt: skip
CASES = [
    (waiting("ErrImagePull", "manifest unknown"), "ImagePullBackOff", ["vllm:x", "manifest unknown"]),
    (waiting("ImagePullBackOff", "Back-off pulling"), "ImagePullBackOff", ["pullSecret"]),
    (waiting("InvalidImageName", "bad name"), "ImagePullBackOff", ["bad name"]),
    (waiting("CreateContainerConfigError", 'secret "hub" not found'), "CreateContainerConfigError",
     ['secret "hub" not found']),
    (waiting("RunContainerError", "no runtime"), "CreateContainerError", ["no runtime"]),
    (ended("StartError", 128, 'exec: "vllm": not found'), "CreateContainerError", ['exec: "vllm"']),
    (ended("Error", 1, "Traceback\nValueError: no such head"), "CrashLoopBackOff",
     ["exit code 1 (Error)", "ValueError: no such head", "3 times", "kubectl logs -p"]),
    (ended("OOMKilled", 137, restarts=1), "OOMKilled", ["1 time", "memory limit of 8Gi"]),
    ({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}, "PodFailed",
     ["Evicted: The node was low on memory"]),
    (UNSCHEDULED, "Unschedulable", ["didn't match Pod's node affinity/selector"]),
]  # fmt: skip


BESIDE = [
    (waiting("ImagePullBackOff", "denied", name="shipper"), ["spec.template.sidecars"]),
    (waiting("CreateContainerConfigError", "none", name="shipper"), ["container shipper", "spec.template.sidecars"]),
    (waiting("CrashLoopBackOff", restartCount=2, name="shipper", lastState={
        "terminated": {"reason": "Error", "exitCode": 1}
    }), ["container shipper of ", "kubectl logs -p", "-c shipper"]),
    (waiting("CrashLoopBackOff", restartCount=2, name="shipper", lastState={
        "terminated": {"reason": "OOMKilled", "exitCode": 137}
    }), ["container shipper of ", "OOMKilled", "spec.template.sidecars"]),
]  # fmt: skip


@pytest.mark.parametrize(("found", "says"), BESIDE)
def test_what_a_sidecar_lacks_is_not_told_of_the_server(found: Json, says: list[str]) -> None:
    problem = pod_problem({"metadata": {"name": "chat-1"}, "spec": {}, "status": found})
    assert problem is not None
    assert [each for each in says if each not in problem.message] == []
    assert "spec.runtime" not in problem.message
    assert "spec.resources" not in problem.message


def strike(made: Cluster, found: Json, pods: list[Json]) -> None:
    for pod in pods:
        name = pod["metadata"]["name"]
        made.api.update("Pod", NAMESPACE, name, lambda d: d.update(status=found), manager="kubelet")


@pytest.mark.parametrize(("found", "reason", "says"), CASES)
def test_a_first_version_that_does_not_start_says_why(
    found: Json, reason: str, says: list[str]
) -> None:
    made = cluster("n1", replicas=1, resources={"gpu": "L4", "memory": "8Gi"})
    made.settle()
    strike(made, found, made.servers())
    made.reconcile()
    ready = condition(made, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", reason)
    assert all(each in ready["message"] for each in says), ready["message"]
    assert condition(made, "Available")["status"] == "False"


@pytest.mark.parametrize(("found", "reason", "says"), CASES)
def test_a_new_version_that_does_not_start_says_why_while_the_old_one_serves(
    found: Json, reason: str, says: list[str]
) -> None:
    made = cluster("n1", "n2", replicas=1, resources={"gpu": "L4", "memory": "8Gi"})
    made.settle()
    (old,) = made.servers()
    made.change_spec(**NEXT)
    while len(made.servers()) == 1:
        made.reconcile()
        made.step()
    new = [pod for pod in made.servers() if pod["metadata"]["name"] != old["metadata"]["name"]]
    strike(made, found, new)
    made.reconcile()
    ready = condition(made, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", reason)
    assert all(each in ready["message"] for each in says), ready["message"]
    assert condition(made, "Available")["status"] == "True"


def test_a_problem_of_the_old_version_does_not_hide_behind_the_new_one() -> None:
    made = cluster("n1", replicas=1)
    made.settle()
    made.registry_up = False
    made.change_spec(**NEXT)
    strike(made, ended("Error", 1), made.servers())
    made.reconcile()
    assert condition(made, "Available")["reason"] == "CrashLoopBackOff"


@pytest.mark.parametrize(
    "says",
    [
        'pods "chat-1" is forbidden: exceeded quota: q, requested: pods=1, used: pods=4, limited: pods=4',
        'Pod "chat-1" is invalid: requests: Invalid value: "5Gi": must be less than or equal to memory limit of 2Gi',
    ],
)
def test_a_replica_set_that_cannot_create_pods_says_why(says: str) -> None:
    made = cluster("n1", replicas=1)
    made.settle()
    for pod in made.servers():
        made.api.delete("Pod", NAMESPACE, pod["metadata"]["name"])
    deployment(
        made,
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": says},
    )
    made.reconcile()
    for kind in ("Scheduled", "Available", "Ready"):
        found = condition(made, kind)
        assert (found["status"], found["reason"]) == ("False", "FailedCreate")
        assert says in found["message"]


def deployment(made: Cluster, *found: Json, name: str = NAME) -> None:
    generation = made.api.get("Deployment", NAMESPACE, name)["metadata"]["generation"]
    state = {"observedGeneration": generation, "conditions": list(found)}
    made.api.update("Deployment", NAMESPACE, name, lambda d: d.update(status=state))


def test_conditions_about_an_older_deployment_count_no_more() -> None:
    made = cluster("n1", replicas=1)
    made.settle()
    deployment(made, {"type": "ReplicaFailure", "status": "True", "message": "quota"})
    made.api.update(
        "Deployment", NAMESPACE, NAME, lambda d: d["status"].update(observedGeneration=0)
    )
    found = made.api.get("Deployment", NAMESPACE, NAME)
    assert worst_problem([], found) is None


def test_an_evicted_server_is_not_counted_beside_the_one_that_replaces_it() -> None:
    made = cluster("n1", "n2", replicas=1)
    made.settle()
    (gone,) = made.servers()
    strike(made, {"phase": "Failed", "reason": "Evicted"}, [gone])
    copy = {**gone, "status": {}, "metadata": {**gone["metadata"], "name": "another"}}
    copy["spec"] = {k: v for k, v in gone["spec"].items() if k != "nodeName"}
    made.api.create(copy)
    made.schedule()
    made.run_kubelets()
    made.run_kubelets()
    strike(made, {"phase": "Failed", "reason": "Evicted"}, [gone])
    made.reconcile()
    assert condition(made, "Ready")["status"] == "True"
    assert status(made)["replicas"] == 1


@pytest.mark.parametrize(("found", "reason", "says"), CASES)
def test_scaled_to_zero_is_ready_only_with_an_activator(
    found: Json, reason: str, says: list[str]
) -> None:
    made = cluster("n1", scale={"min": 0, "max": 2})
    made.settle()
    assert condition(made, "Ready")["status"] == "True"
    (pod,) = made.api.list("Pod", NAMESPACE, names.selector(NAME, names.ACTIVATOR))
    strike(made, found, [pod])
    made.reconcile()
    assert condition(made, "Available")["status"] == condition(made, "Ready")["status"] == "False"
    expected = "ActivatorNotReady" if reason == "PodFailed" else reason
    assert condition(made, "Ready")["reason"] == expected


@given(pods=st.lists(st.sampled_from([each for each, _, _ in CASES]), max_size=4))
def test_the_problem_told_does_not_depend_on_the_order_of_the_pods(pods: list[Json]) -> None:
    documents = [
        {"metadata": {"name": f"p{n}"}, "spec": {}, "status": each} for n, each in enumerate(pods)
    ]
    found = worst_problem(documents)
    other = worst_problem(documents[::-1])
    assert (found and found.reason) == (other and other.reason)
    assert (found is None) == (not pods)


def test_a_ready_pod_has_no_problem_whatever_happened_before() -> None:
    state = ended("OOMKilled", 137)
    state["conditions"] = [{"type": "Ready", "status": "True"}]
    assert pod_problem({"metadata": {"name": "p"}, "spec": {}, "status": state}) is None


@pytest.mark.parametrize(
    ("kind", "by", "found"),
    [
        ("HorizontalPodAutoscaler", {"by": "hpa"},
         {"type": "ScalingActive", "status": "False", "reason": "FailedGetPodsMetric", "message": "no metrics API"}),
        ("HorizontalPodAutoscaler", {"by": "hpa"},
         {"type": "AbleToScale", "status": "False", "reason": "FailedGetScale", "message": "no metrics API"}),
        ("ScaledObject", {"by": "keda", "prometheus": "http://p"},
         {"type": "Ready", "status": "False", "reason": "ScaledObjectCheckFailed", "message": "no metrics API"}),
    ],
)  # fmt: skip
def test_an_autoscaler_that_cannot_read_its_metric_is_told(
    kind: str, by: Json, found: Json
) -> None:
    made = cluster("n1", scale={"min": 1, "max": 2, **by})
    made.settle()
    assert condition(made, "Ready")["status"] == "True"
    made.api.update(kind, NAMESPACE, NAME, lambda d: d.update(status={"conditions": [found]}))
    made.reconcile()
    ready = condition(made, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "MetricUnavailable")
    assert kind in ready["message"]
    assert "no metrics API" in ready["message"]
    paused = {"type": "ScalingActive", "status": "False", "reason": "ScalingDisabled"}
    made.api.update(kind, NAMESPACE, NAME, lambda d: d.update(status={"conditions": [paused]}))
    made.reconcile()
    assert condition(made, "Ready")["status"] == "True"


def test_a_load_that_the_built_in_scaler_cannot_read_is_told() -> None:
    made = cluster("n1", scale={"min": 1, "max": 2})
    made.settle()
    made.unread = RemoteRefused("the server's metrics have no queue length", hint="Enable them.")
    made.reconcile()
    ready = condition(made, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "MetricUnavailable")
    assert "no queue length. Enable them. The number of replicas stays." in ready["message"]
    made.unread = None
    made.reconcile()
    assert condition(made, "Ready")["status"] == "True"


def test_a_quota_is_written_only_where_the_operator_allows_it() -> None:
    made = cluster("n1", tenancy={"quota": {"pods": "4"}, "limits": {"cpu": "1"}})
    made.environment = SystemSettings(quotas=False)
    made.settle()
    assert made.api.list("ResourceQuota") == made.api.list("LimitRange") == []
    assert condition(made, "Ready")["reason"] == "QuotaNotAllowed"
    assert len(made.ready_servers()) == 1
