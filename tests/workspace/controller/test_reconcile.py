"""What the controller does in the situations it is for, one at a time, in the simulated cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelimage.errors import InvalidInput
from tests.workspace import samples
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from workspace.controller.observation import revisions
from workspace.document import parse_workspace
from workspace.render import names

Json = dict[str, Any]


def cluster(*nodes: str, **spec: Any) -> Cluster:
    made = Cluster()
    for name in nodes:
        made.add_node(name)
    made.create_workspace(**spec)
    return made


def status(made: Cluster) -> Json:
    return made.api.get("Workspace", NAMESPACE, NAME)["status"]


def condition(made: Cluster, kind: str) -> Json:
    return next(each for each in status(made)["conditions"] if each["type"] == kind)


def deployment(made: Cluster) -> Json:
    return made.api.get("Deployment", NAMESPACE, NAME)


def image_of(template: Json) -> str:
    volumes = template["spec"]["volumes"]
    return next(v["csi"]["volumeAttributes"]["image"] for v in volumes if v["name"] == "model")


def prewarm_pods(made: Cluster) -> list[Json]:
    return made.api.list("Pod", NAMESPACE, names.selector(NAME, names.PREWARM))


def test_no_gpu_is_held_while_the_model_is_fetched() -> None:
    made = cluster("n1", "n2", replicas=2)
    made.reconcile()
    assert deployment(made)["spec"]["replicas"] == 0
    assert len(prewarm_pods(made)) == 2
    for pod in prewarm_pods(made):
        resources = pod["spec"]["containers"][0]["resources"]
        assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}
    assert condition(made, "Cached")["reason"] == "Fetching"
    made.settle()
    assert len(made.ready_servers()) == 2
    assert prewarm_pods(made) == []


def test_the_first_replica_starts_on_the_first_warm_node() -> None:
    made = cluster("n1", "n2", replicas=2)
    made.reconcile()
    made.schedule()
    first = prewarm_pods(made)[0]
    image = samples.pinned(samples.IMAGE).image
    made.held[first["spec"]["nodeName"]].add(image)
    made.run_kubelets()  # the other node has only now fetched it; only one pod runs
    made.reconcile()
    assert deployment(made)["spec"]["replicas"] == 1
    assert condition(made, "Scheduled")["reason"] == "WaitingForCache"


def test_a_node_that_holds_the_model_needs_no_prewarm_pod() -> None:
    made = cluster("n1", replicas=0)
    made.labels_nodes = True
    made.held["n1"].add(samples.pinned(samples.IMAGE).image)
    made.settle()
    made.change_spec(replicas=1)
    made.reconcile()
    assert prewarm_pods(made) == []
    assert deployment(made)["spec"]["replicas"] == 1


def test_without_any_fitting_node_replicas_are_asked_for_so_that_an_autoscaler_sees_them() -> None:
    made = cluster(replicas=1)
    made.settle()
    assert deployment(made)["spec"]["replicas"] == 1
    assert condition(made, "Cached")["reason"] == "NoNode"
    assert condition(made, "Ready")["status"] == "False"


def test_a_new_version_is_fetched_first_and_the_old_one_serves_meanwhile() -> None:
    made = cluster("n1", "n2", "n3", replicas=2)
    made.settle()
    old = image_of(deployment(made)["spec"]["template"])
    made.change_spec(model={"image": "registry.example/team/llama:v2"})
    new = samples.pinned("registry.example/team/llama:v2").image
    for _ in range(30):
        before = image_of(deployment(made)["spec"]["template"])
        held = {name for name, images in made.held.items() if new in images}
        made.reconcile()
        if before == old and image_of(deployment(made)["spec"]["template"]) == new:
            assert len(held) >= 2
        made.step()
        assert len(made.ready_servers()) >= 2
    made.settle()
    assert image_of(deployment(made)["spec"]["template"]) == new
    assert {image_of({"spec": pod["spec"]}) for pod in made.servers()} == {new}
    assert status(made)["revision"] == 2


def test_a_single_gpu_without_room_says_so_and_keeps_serving() -> None:
    made = cluster("n1", replicas=1)
    made.settle()
    made.change_spec(model={"image": "registry.example/team/llama:v2"})
    made.settle()
    assert len(made.ready_servers()) == 1
    found = condition(made, "Ready")
    assert found["reason"] == "NoRoomForNewVersion"
    assert "Insufficient nvidia.com/gpu" in found["message"]


def test_going_back_needs_no_registry_and_means_the_same_bytes() -> None:
    made = cluster("n1", "n2", replicas=1)
    made.tags[samples.IMAGE] = "first"
    made.settle()
    before = deployment(made)["spec"]["template"]
    made.change_spec(model={"image": "registry.example/team/llama:v2"})
    made.settle()
    made.tags[samples.IMAGE] = "moved"
    made.registry_up = False
    kept = revisions.history(made.api.list("ControllerRevision"), NAME)
    made.change_spec(model=kept[0].requested["model"])
    made.settle()
    assert deployment(made)["spec"]["template"] == before
    assert status(made)["revision"] == 3
    assert condition(made, "Ready")["status"] == "True"


def test_a_registry_that_is_away_stops_nothing_that_runs() -> None:
    made = cluster("n1", replicas=1)
    made.settle()
    made.registry_up = False
    made.api.delete("Deployment", NAMESPACE, NAME)
    made.settle()
    assert len(made.ready_servers()) == 1
    made.change_spec(model={"image": "registry.example/team/llama:v2"})
    made.settle()
    assert len(made.ready_servers()) == 1
    found = condition(made, "ModelResolved")
    assert (found["status"], found["reason"]) == ("False", "Unreachable")
    assert "keeps serving" in found["message"]


def test_a_moved_tag_changes_nothing_until_it_is_asked_for() -> None:
    made = cluster("n1", "n2", replicas=1)
    made.settle()
    old, requested = image_of(deployment(made)["spec"]["template"]), made.asked
    made.tags[samples.IMAGE] = "moved"
    made.settle()
    assert made.asked == requested
    assert image_of(deployment(made)["spec"]["template"]) == old
    made.change_spec(rollout={"restartedAt": "today"})
    made.settle()
    assert image_of(deployment(made)["spec"]["template"]) == samples.pinned("moved").image


def test_history_is_kept_to_its_limit_and_never_loses_what_runs() -> None:
    made = cluster("n1", "n2", replicas=1, rollout={"history": 2})
    for number in range(6):
        made.change_spec(model={"image": f"registry.example/team/llama:v{number}"})
        made.settle()
    kept = revisions.history(made.api.list("ControllerRevision"), NAME)
    assert [each.number for each in kept] == [4, 5, 6]


def test_what_others_made_is_not_taken_over() -> None:
    made = cluster("n1", replicas=1)
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"selector": {"app": "other"}, "ports": [{"port": 80}]},
    }
    made.api.create(theirs)
    made.settle()
    assert made.api.get("Service", NAMESPACE, NAME)["spec"]["selector"] == {"app": "other"}
    found = condition(made, "Ready")
    assert found["reason"] == "NameConflict"
    assert f"Service {NAME}" in found["message"]


def test_what_is_no_longer_asked_for_goes() -> None:
    made = cluster("n1", replicas=1, tenancy={"quota": {"pods": "4"}, "limits": {"cpu": "1"}})
    made.settle()
    assert len(made.api.list("ResourceQuota")) == len(made.api.list("LimitRange")) == 1
    made.change_spec(tenancy=None)
    made.settle()
    assert made.api.list("ResourceQuota") == made.api.list("LimitRange") == []


def test_fields_that_we_no_longer_want_vanish_and_those_of_others_stay() -> None:
    made = cluster(
        "n1", "n2", replicas=1, tenancy={"networkPolicy": {"allowFromNamespaces": {"a": "b"}}}
    )
    made.settle()

    def annotate(document: Json) -> None:
        document["metadata"].setdefault("annotations", {})["theirs"] = "kept"
        document["spec"]["selector"]["extra"] = "kept"

    made.api.update("Service", NAMESPACE, NAME, annotate)
    made.change_spec(tenancy=None, runtime={"port": 9000})
    made.settle()
    service = made.api.get("Service", NAMESPACE, NAME)
    assert service["metadata"]["annotations"]["theirs"] == "kept"
    policy = made.api.get("NetworkPolicy", NAMESPACE, NAME)["spec"]["ingress"][0]
    assert len(policy["from"]) == 2
    assert policy["ports"][0]["port"] == 9000


def test_deletion_is_left_to_the_owner_references() -> None:
    made = cluster("n1", replicas=1)
    made.settle()
    made.api.delete("Workspace", NAMESPACE, NAME)
    made.run_deployments()
    assert {kind for kind, _, _ in made.api.objects} == {"Node"}


@pytest.mark.parametrize(
    ("spec", "reason", "says"),
    [
        ({"resources": {"gpuMemory": "2Gi"}}, "DoesNotFit", "smaller variant"),
        ({"resources": {}}, "InvalidInput", "spec.resources.gpu"),
        ({"model": {"image": "registry.example/a/b:v1", "variant": "int8"}, "resources": {"gpu": "B200"}},
         "DoesNotFit", "INT8 kernels"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_placed_says_why_and_what_to_do(
    spec: Json, reason: str, says: str
) -> None:
    made = cluster("n1", **spec)
    made.settle()
    found = condition(made, "ModelResolved")
    assert (found["status"], found["reason"]) == ("False", reason)
    assert says in found["message"]
    assert condition(made, "Ready")["reason"] == reason


def test_gpu_labels_of_nodes_stand_in_for_a_spec_that_names_no_gpu() -> None:
    made = cluster(resources={})
    for name, memory in (("big", "81920"), ("small", "15360")):
        made.add_node(name)
        labels = {
            "nvidia.com/gpu.product": "NVIDIA-X", "nvidia.com/gpu.memory": memory,
            "nvidia.com/gpu.compute.major": "8", "nvidia.com/gpu.compute.minor": "9",
        }  # fmt: skip
        made.api.update("Node", "", name, lambda d, new=labels: d["metadata"].update(labels=new))
    made.settle()
    # What fits the weakest node fits them all.
    assert status(made)["variant"] == "int8"


def test_a_document_that_cannot_be_read_leaves_everything_as_it_is() -> None:
    made = cluster("n1", replicas=1)
    made.settle()
    made.api.update(
        "Workspace", NAMESPACE, NAME, lambda d: d["spec"].update(scale={"min": 3, "max": 2})
    )
    made.settle()
    assert len(made.ready_servers()) == 1
    assert condition(made, "ModelResolved")["reason"] == "InvalidInput"
    assert condition(made, "Cached")["status"] == "True"


@pytest.mark.parametrize(
    ("gpu", "says"), [("L44", "did you mean 'L4'?"), ("MI300X", "is by amd, and vendor is nvidia")]
)
def test_a_gpu_that_there_is_none_of_leaves_what_serves_as_it_is(gpu: str, says: str) -> None:
    made = Cluster(labels_nodes=True)
    for number in range(3):
        made.add_node(f"n{number}")
    made.create_workspace(replicas=1)
    made.settle()
    made.change_spec(resources={"gpu": gpu})
    made.settle()
    found = condition(made, "ModelResolved")
    assert found["reason"] == "InvalidInput"
    assert says in found["message"]
    assert len(made.ready_servers()) == 1


ANALYSED: Json = {"steps": [{"weight": 50}, {"analysis": {"seconds": 60}}]}


@pytest.mark.parametrize(
    "spec",
    [
        {"rollout": {"analysis": {"minRequests": 5}}},
        {"rollout": {"keepSeconds": 60}},
        {"rollout": ANALYSED},
        {"rollout": {"strategy": "canary", **ANALYSED}, "runtime": {"engine": "sglang"}},
        {"runtime": {"engine": "sglang", "tracing": {"endpoint": "http://collector:4317"}}},
        {
            "scale": {"min": 1, "max": 1, "by": "hpa"},
            "rollout": {"strategy": "canary", "steps": [{"weight": 80}]},
        },
    ],
)
def test_a_stored_field_without_effect_is_refused_to_whoever_writes_it_and_stops_nothing(
    spec: Json,
) -> None:
    stored = samples.document(**spec)
    with pytest.raises(InvalidInput):
        parse_workspace(json.dumps(stored), name="chat.yaml")
    made = cluster("n1", "n2", "n3", **spec)
    made.settle()
    assert (len(made.ready_servers()), condition(made, "Ready")["status"]) == (1, "True")
    made.api.update(
        "Workspace", NAMESPACE, NAME,
        lambda d: (d["spec"].pop("scale", None), d["spec"].update(replicas=2)),
    )  # fmt: skip
    made.settle()
    assert (len(made.ready_servers()), condition(made, "Ready")["status"]) == (2, "True")


def test_a_stored_analysis_of_an_engine_that_counts_otherwise_waits_for_a_person() -> None:
    rollout = {"strategy": "canary", **ANALYSED}
    made = cluster("n1", "n2", "n3", replicas=1, rollout=rollout, runtime={"engine": "sglang"})
    made.settle()
    made.change_spec(model={"image": "registry.example/team/llama:v2"})
    made.settle()
    made.later(86_400)
    made.settle()
    version = status(made)["rollout"]["version"]
    assert condition(made, "Ready")["reason"] in ("Comparing", "Inconclusive")
    made.annotate(promote=version)
    made.settle()
    assert condition(made, "Ready")["status"] == "True"


def test_scaled_to_zero_one_node_stays_warm_and_the_activator_answers() -> None:
    made = cluster("n1", scale={"min": 0, "max": 2})
    made.settle()
    assert deployment(made)["spec"]["replicas"] == 0
    assert len(prewarm_pods(made)) == 1
    service = made.api.get("Service", NAMESPACE, NAME)
    assert service["spec"]["selector"][names.ROLE] == names.ACTIVATOR
    assert condition(made, "Available")["reason"] == "ScaledToZero"
    made.wanted = 1
    made.settle()
    service = made.api.get("Service", NAMESPACE, NAME)
    assert service["spec"]["selector"][names.ROLE] == names.SERVER
    assert len(made.ready_servers()) == 1


def test_the_last_server_goes_only_after_requests_go_to_the_activator() -> None:
    made = cluster("n1", scale={"min": 0, "max": 2})
    made.wanted = 1
    made.settle()
    made.wanted = 0
    for _ in range(10):
        made.reconcile()
        selector = made.api.get("Service", NAMESPACE, NAME)["spec"]["selector"]
        if deployment(made)["spec"]["replicas"] == 0:
            assert selector[names.ROLE] == names.ACTIVATOR
        made.step()
    assert made.ready_servers() == []


def test_others_that_scale_are_left_to_it() -> None:
    made = cluster("n1", "n2", "n3", scale={"min": 1, "max": 3, "by": "hpa"})
    made.settle()
    made.api.update("Deployment", NAMESPACE, NAME, lambda d: d["spec"].update(replicas=3))
    made.settle()
    assert len(made.ready_servers()) == 3
    assert made.api.list("Deployment", NAMESPACE)[0]["spec"]["replicas"] == 3


def test_an_evicted_prewarm_pod_is_made_anew() -> None:
    made = cluster("n1", replicas=1)
    made.reconcile()
    (pod,) = prewarm_pods(made)
    made.api.update(
        "Pod", NAMESPACE, pod["metadata"]["name"], lambda d: d.update(status={"phase": "Failed"})
    )
    made.settle()
    assert len(made.ready_servers()) == 1


def test_versions_read_back_as_they_were_kept() -> None:
    workspace = samples.workspace(NAME, runtime={"env": [{"name": "A", "value": "b"}]})
    revision = revisions.new_revision(workspace, samples.release(workspace), number=3)
    assert revisions.from_document(revisions.to_document(workspace, revision)) == revision


def test_what_is_told_is_true_while_nothing_runs() -> None:
    stopped = cluster("n1", replicas=0)
    stopped.settle()
    assert condition(stopped, "Cached")["reason"] == "NotNeeded"
    assert prewarm_pods(stopped) == []
    unresolved = cluster("n1", replicas=1)
    unresolved.registry_up = False
    unresolved.settle()
    assert condition(unresolved, "Scheduled")["reason"] == "Unresolved"
    zero = cluster("n1", scale={"min": 0, "max": 2})
    zero.wanted = 0
    zero.settle()
    assert "Scaled to 0" in condition(zero, "Ready")["message"]
