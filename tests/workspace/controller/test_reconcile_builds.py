"""What the controller does for a model that is built from its source first, in the simulated cluster."""

from __future__ import annotations

from tests.workspace.controller.simulation import NAMESPACE, Cluster
from tests.workspace.controller.test_reconcile import Json, cluster, condition, image_of, status

HUB = {"hub": "org/llama", "build": {"to": "registry.example/team/llama"}}


def jobs(made: Cluster) -> list[Json]:
    return made.api.list("Job", NAMESPACE)


def test_a_model_on_the_hub_is_built_then_served_and_the_job_goes() -> None:
    made = cluster("n1", replicas=1, model=HUB)
    made.reconcile()
    found = condition(made, "ModelResolved")
    assert found["reason"] == "Building"
    assert jobs(made)[0]["metadata"]["name"] in found["message"]
    writes = len(made.api.writes)
    made.reconcile()
    assert len(made.api.writes) == writes
    made.settle()
    assert len(made.ready_servers()) == 1
    assert status(made)["image"].startswith("registry.example/team/llama@sha256:")
    assert jobs(made) == []


def test_a_build_that_fails_says_where_to_look_and_is_tried_again_when_its_job_is_deleted() -> None:
    made = cluster("n1", replicas=1, model=HUB)
    made.builds_fail = True
    made.settle()
    found = condition(made, "Ready")
    assert found["reason"] == "BuildFailed"
    (job,) = jobs(made)
    assert f"kubectl logs -l job-name={job['metadata']['name']}" in found["message"]
    made.builds_fail = False
    made.api.delete("Job", NAMESPACE, job["metadata"]["name"])
    made.settle()
    assert len(made.ready_servers()) == 1


def test_a_registry_that_is_away_ends_no_build_and_a_changed_source_does() -> None:
    made = cluster("n1", replicas=1, model=HUB)
    made.reconcile()
    (first,) = jobs(made)
    made.registry_up = False
    made.reconcile()
    assert jobs(made)[0]["metadata"]["uid"] == first["metadata"]["uid"]
    made.registry_up = True
    made.change_spec(model={**HUB, "hub": "org/llama@v2"})
    made.reconcile()
    (second,) = jobs(made)
    assert second["metadata"]["name"] != first["metadata"]["name"]


def test_the_old_version_serves_while_the_next_is_built() -> None:
    made = cluster("n1", "n2", replicas=1)
    made.settle()
    made.change_spec(model=HUB)
    made.reconcile()
    assert len(made.ready_servers()) == 1
    assert condition(made, "ModelResolved")["reason"] == "Building"
    assert "keeps serving" in condition(made, "ModelResolved")["message"]
    made.settle()
    assert image_of(made.ready_servers()[0]).startswith("registry.example/team/llama@")


def test_a_source_without_a_place_to_build_to_says_what_to_set() -> None:
    made = cluster("n1", model={"s3": "bucket/llama"})
    made.settle()
    found = condition(made, "Ready")
    assert found["reason"] == "InvalidInput"
    assert "spec.model.build.to" in found["message"]
    assert "weightyard build s3://bucket/llama" in found["message"]
