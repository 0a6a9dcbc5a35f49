"""What a Workspace adds to its servers' pods, as the operator lets it: from the document to the pods, and back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from modelimage.errors import InvalidInput
from tests.workspace import samples
from tests.workspace.controller.rollouts.test_canary import cluster_of
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_reconcile import cluster, condition, deployment, status
from tests.workspace.controller.test_running import prepared, running, until
from tests.workspace.templates import EVERY_FIELD
from weightyard.commands.rollout import with_version
from workspace.controller.observation.revisions import history
from workspace.document import workspace_of
from workspace.render import names
from workspace.render.groups import KIND
from workspace.render.routing import SystemSettings
from workspace.template_spec import FIELDS

Json = dict[str, Any]
ALL = SystemSettings(template_fields=frozenset(FIELDS))
REFUSED = [
    {"annotations": {"k8s.v1.cni.cncf.io/networks": "storage"}},
    {"priorityClassName": "high"},
    {"serviceAccountName": "admin"},
    {"sidecars": [{"name": "a", "image": "registry.example/a"}]},
    {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "others"}}]},
]


def allowing(*nodes: str, **spec: Any) -> Cluster:
    made = cluster(*nodes, **spec)
    made.environment = ALL
    return made


def containers(pod: Json) -> list[str]:
    return [each["name"] for each in pod["spec"]["containers"]]


@pytest.mark.parametrize("template", REFUSED, ids=lambda each: next(iter(each)))
def test_a_stored_field_that_the_operator_does_not_allow_runs_nothing(template: Json) -> None:
    """As in a cluster without admission policies, or after the operator has changed the list."""
    made = cluster("n1", template=template)
    made.settle()
    assert made.api.list("Pod", NAMESPACE) == []
    assert made.api.list("Deployment", NAMESPACE) == []
    for kind in ("ModelResolved", "Ready"):
        found = condition(made, kind)
        assert (found["status"], found["reason"]) == ("False", "TemplateNotAllowed")
        assert f"spec.template.{next(iter(template))}" in found["message"]
        assert "controller.workspaces.templateFields" in found["message"]
    made.environment = ALL
    made.settle()
    assert condition(made, "Ready")["status"] == "True"


@pytest.mark.parametrize("template", REFUSED, ids=lambda each: next(iter(each)))
def test_an_edit_that_is_not_allowed_leaves_what_serves_alone(template: Json) -> None:
    made = cluster("n1", "n2")
    made.settle()
    before = deployment(made)["spec"]["template"], made.servers()
    made.change_spec(template=template)
    made.settle()
    assert (deployment(made)["spec"]["template"], made.servers()) == before
    found = condition(made, "Ready")
    assert (found["status"], found["reason"]) == ("False", "TemplateNotAllowed")
    assert "The previous version keeps serving" in found["message"]
    made.change_spec(template=None)
    made.settle()
    assert condition(made, "Ready")["status"] == "True"
    assert status(made)["revision"] == 1


def test_servers_that_were_allowed_go_on_after_the_operator_changed_the_list() -> None:
    made = allowing("n1", template={"priorityClassName": "high"})
    made.settle()
    made.environment = SystemSettings()
    made.settle()
    assert len(made.ready_servers()) == 1
    assert condition(made, "Ready")["reason"] == "TemplateNotAllowed"
    # A version that is kept from then is not taken again.
    made.change_spec(template=None)
    made.settle()
    made.change_spec(template={"priorityClassName": "high"})
    made.settle()
    assert "priorityClassName" not in deployment(made)["spec"]["template"]["spec"]
    assert condition(made, "Ready")["reason"] == "TemplateNotAllowed"


def test_every_field_is_served_and_then_nothing_more_is_written() -> None:
    made = allowing("n1", "n2", template=EVERY_FIELD, replicas=2)
    made.reconcile()
    warming = made.api.list("Pod", NAMESPACE, names.selector(NAME, names.PREWARM))
    assert {each["spec"]["runtimeClassName"] for each in warming} == {"nvidia"}
    assert {each["spec"]["priorityClassName"] for each in warming} == {"serving"}
    assert not [each for each in warming if "team" in each["metadata"]["labels"]]
    made.settle()
    assert condition(made, "Ready")["status"] == "True"
    for pod in made.ready_servers():
        assert containers(pod) == ["server", "log-shipper"]
        assert pod["metadata"]["labels"]["team"] == "search"
        assert pod["metadata"]["labels"].items() >= names.selector(NAME, names.SERVER).items()
    writes = len(made.api.writes)
    made.settle()
    assert len(made.api.writes) == writes


def test_a_change_is_a_new_version_and_what_is_taken_out_goes() -> None:
    made = allowing("n1", "n2", template=EVERY_FIELD)
    made.settle()
    made.change_spec(template={"labels": {"team": "other"}})
    for _ in range(30):
        made.reconcile()
        made.step()
        assert made.ready_servers()
    made.settle()
    assert status(made)["revision"] == 2
    template = deployment(made)["spec"]["template"]
    assert containers(template) == ["server"]
    assert template["metadata"]["labels"]["team"] == "other"
    assert "example.com/cost-centre" not in template["metadata"]["labels"]
    assert {"runtimeClassName", "priorityClassName"}.isdisjoint(template["spec"])
    assert {"prompts", "compiled"}.isdisjoint(each["name"] for each in template["spec"]["volumes"])
    made.change_spec(template=EVERY_FIELD)
    made.settle()
    # Nothing is planned anew for a version that is kept.
    assert (status(made)["revision"], made.asked) == (3, 2)
    assert containers(deployment(made)["spec"]["template"]) == ["server", "log-shipper"]


def test_a_new_version_beside_the_other_has_its_own_template() -> None:
    made = cluster_of(strategy="canary", steps=[{"weight": 25}, {"pause": {}}])
    made.change_spec(template={"labels": {"team": "a"}, "runtimeClassName": "nvidia"})
    made.settle()
    beside = made.api.get("Deployment", NAMESPACE, names.candidate(NAME))["spec"]["template"]
    serving = deployment(made)["spec"]["template"]
    assert beside["metadata"]["labels"]["team"] == "a"
    assert beside["spec"]["runtimeClassName"] == "nvidia"
    assert "team" not in serving["metadata"]["labels"]
    assert "runtimeClassName" not in serving["spec"]
    # A field that isn't allowed ends the trial, as any other spec that can't be served.
    made.change_spec(template={"serviceAccountName": "admin"})
    made.settle()
    assert condition(made, "ModelResolved")["reason"] == "TemplateNotAllowed"
    assert not [
        each
        for each in made.servers()
        if each["spec"]["serviceAccountName"] != NAME or "team" in each["metadata"]["labels"]
    ]


def test_leaders_and_workers_have_it_both() -> None:
    made = Cluster(environment=ALL)
    for name in ("n1", "n2"):
        made.add_node(name, gpus=2)
    made.create_workspace(template=EVERY_FIELD, resources={"gpu": "H100", "gpus": 4, "nodes": 2})
    made.settle()
    assert condition(made, "Ready")["status"] == "True"
    group = made.api.get(KIND, NAMESPACE, names.group(NAME))["spec"]["leaderWorkerTemplate"]
    for template in (group["leaderTemplate"], group["workerTemplate"]):
        assert containers(template) == ["server", "log-shipper"]
        assert template["spec"]["runtimeClassName"] == "nvidia"


def test_an_undo_takes_the_template_back() -> None:
    made = allowing("n1")
    made.settle()
    made.change_spec(template=EVERY_FIELD)
    made.settle()
    first, second = history(made.api.list("ControllerRevision", NAMESPACE), NAME)
    document = made.api.get("Workspace", NAMESPACE, NAME)
    assert "template" not in with_version(document, first)["spec"]
    again = with_version(with_version(document, first), second)
    assert workspace_of(again).spec == workspace_of(document).spec


def test_over_the_api_servers_own_protocol() -> None:
    """The API server refuses what the schema excludes; the controller, what the operator does."""

    async def scenario() -> None:
        made = prepared(replicas=1, template={"serviceAccountName": "admin"})
        async with running(made) as (_, _):
            await until(made, lambda: _reason(made) == "TemplateNotAllowed")
            assert made.servers() == []
            made.change_spec(template={"runtimeClassName": "nvidia"})
            await until(made, lambda: _reason(made) == "Ready")
            assert [each["spec"]["runtimeClassName"] for each in made.servers()] == ["nvidia"]

    asyncio.run(scenario())


def _reason(made: Cluster) -> str:
    found = made.api.get("Workspace", NAMESPACE, NAME).get("status", {}).get("conditions", ())
    return next((each["reason"] for each in found if each["type"] == "Ready"), "")


def test_a_stored_template_that_no_schema_accepts_stops_nothing() -> None:
    """It was stored before the schema knew its rules."""
    made = cluster("n1")
    made.settle()
    made.change_spec(template={"volumes": [{"name": "a", "hostPath": {"path": "/"}}]})
    made.settle()
    assert len(made.ready_servers()) == 1
    assert condition(made, "ModelResolved")["reason"] == "InvalidInput"
    document = made.api.get("Workspace", NAMESPACE, NAME)
    with pytest.raises(InvalidInput, match="exactly one of configMap"):
        workspace_of(document)


def test_the_settings_default_is_the_safe_one() -> None:
    assert SystemSettings() == replace(ALL, template_fields=SystemSettings().template_fields)
    assert "serviceAccountName" not in SystemSettings().template_fields
    assert samples.workspace(template=EVERY_FIELD).spec.template.used
