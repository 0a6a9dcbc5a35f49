"""A build in the cluster: what reaches it, what ends it, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelimage import errors
from tests.workspace import openapi, samples
from tests.workspace.controller.observation.test_pod_problems import UNSCHEDULED, waiting
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_reconcile import Json, cluster, condition
from tests.workspace.controller.test_reconcile_builds import HUB, jobs
from weightyard.exits import EXIT_CODES
from workspace.render import names
from workspace.render.build_settings import BuildSettings
from workspace.render.builder_objects import LASTING_ERRORS, build_job
from workspace.render.routing import SystemSettings

# Errors that another try may not meet: the world's, the node's, and other processes'.
PASSING = {errors.NotWritable, errors.NoSpace, errors.Unreachable, errors.RateLimited, errors.Busy,
           errors.EngineFailed, errors.TimedOut, errors.InUse}  # fmt: skip


def job(settings: BuildSettings, **spec: Any) -> Json:
    workspace = samples.workspace(model={**HUB, "pullSecret": "pull"}, **spec)
    return build_job(workspace, replace(SystemSettings(), builds=settings))


def test_the_builds_surroundings_are_the_controllers() -> None:
    settings = BuildSettings(
        plain_http=("registry:5000",),
        internal_hosts=("10.0.0.0/8",),
        ca="PEM",
        env={"HTTPS_PROXY": "http://p:1"},
        requests={"memory": "8Gi"},
    )
    made = job(settings)
    assert openapi.problems(made, openapi.NEWEST) == []
    template = made["spec"]["template"]
    (container,) = template["spec"]["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    assert "--plain-http=registry:5000" in container["args"]
    assert "--internal-host=10.0.0.0/8" in container["args"]
    assert env["HTTPS_PROXY"] == "http://p:1"
    assert container["resources"]["requests"] == {"memory": "8Gi"}
    (volume,) = [each for each in template["spec"]["volumes"] if each["name"] == "ca"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "ca"]
    (item,) = volume["downwardAPI"]["items"]
    assert env["WEIGHTYARD_CA_FILE"] == f"{mount['mountPath']}/{item['path']}"
    assert names.CA in item["fieldRef"]["fieldPath"]
    assert template["metadata"]["annotations"][names.CA] == "PEM"


def test_without_an_authority_nothing_is_mounted() -> None:
    assert "ca" not in str(
        [each["name"] for each in job(BuildSettings())["spec"]["template"]["spec"]["volumes"]]
    )


def test_the_exit_codes_that_end_a_build_are_those_of_errors_that_last() -> None:
    lasting = {
        code for kind, code in EXIT_CODES.items()
        if kind not in PASSING and kind.__name__ not in ("AgentBug", "PreflightFailed")
    }  # fmt: skip
    assert set(LASTING_ERRORS) == lasting
    rules = job(BuildSettings())["spec"]["podFailurePolicy"]["rules"]
    assert rules[-1]["onExitCodes"]["values"] == sorted(lasting)


def pod(made: Cluster, status: Json, *, name: str = "b-1") -> None:
    """A pod of the build Job, as its controller makes it."""
    (found,) = jobs(made)
    template = found["spec"]["template"]
    labels = {**template["metadata"]["labels"], "job-name": found["metadata"]["name"]}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
    made.api.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    )
    made.api.update("Pod", NAMESPACE, name, lambda d: d.update(status=status))


def ended(message: str, *, code: int = 4, at: str = "2026-01-01T00:00:00Z") -> Json:
    end = {"exitCode": code, "reason": "Error", "message": message, "finishedAt": at}
    return {
        "phase": "Failed",
        "containerStatuses": [{"name": "build", "state": {"terminated": end}}],
    }


def fail(made: Cluster) -> None:
    (found,) = jobs(made)
    state = {
        "conditions": [{"type": "Failed", "status": "True", "message": "Pod failed: exit code 4"}]
    }
    made.api.update("Job", NAMESPACE, found["metadata"]["name"], lambda d: d.update(status=state))


def test_a_failed_build_says_the_builders_last_error_and_hint() -> None:
    made = cluster("n1", model=HUB)
    made.reconcile()
    pod(made, ended("error: older", at="2025-01-01T00:00:00Z"), name="b-1")
    pod(
        made,
        ended("reading 1 of 9\nerror: no access to org/llama\n  hint: Set HF_TOKEN.\n"),
        name="b-2",
    )
    fail(made)
    made.reconcile()
    found = condition(made, "Ready")
    assert found["reason"] == "BuildFailed"
    assert "no access to org/llama hint: Set HF_TOKEN" in found["message"]
    assert "older" not in found["message"]
    assert "reading 1 of 9" not in found["message"]


def test_a_build_that_is_tried_again_says_why() -> None:
    made = cluster("n1", model=HUB)
    made.reconcile()
    pod(made, ended("error: the Hub doesn't answer", code=11))
    made.reconcile()
    found = condition(made, "Ready")
    assert found["reason"] == "Building"
    assert "the Hub doesn't answer" in found["message"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            waiting("CreateContainerConfigError", 'secret "hub" not found'),
            "CreateContainerConfigError",
        ),
        (waiting("ErrImagePull", "denied"), "ImagePullBackOff"),
        (UNSCHEDULED, "Unschedulable"),
    ],
)
def test_a_build_that_cannot_start_says_why(status: Json, reason: str) -> None:
    made = cluster("n1", model=HUB)
    made.reconcile()
    pod(made, status)
    made.reconcile()
    found = condition(made, "ModelResolved")
    assert (found["status"], found["reason"]) == ("False", reason)
    assert made.api.get("Workspace", NAMESPACE, NAME)["status"]["replicas"] == 0


def test_a_failed_job_goes_by_itself_and_no_build_lasts_for_ever() -> None:
    spec = job(BuildSettings())["spec"]
    assert spec["ttlSecondsAfterFinished"] < spec["activeDeadlineSeconds"]
