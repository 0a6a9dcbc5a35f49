"""What `spec.template` takes and refuses, each with the place and what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import given

from modelimage.errors import InvalidInput
from tests.workspace import samples, templates
from tests.workspace.templates import EVERY_FIELD
from workspace.document import parse_workspace
from workspace.render import names
from workspace.render.pod import pod_template, volume_mounts, volumes
from workspace.template_spec import (
    CONTAINER_TAKEN,
    DEFAULT_FIELDS,
    FIELDS,
    SERVER_PATHS,
    SERVER_PORT_NAME,
    VOLUME_TAKEN,
    PodTemplate,
    not_allowed,
    parse_fields,
)

Json = dict[str, Any]


def complaint(template: Json, **spec: Any) -> str:
    """What the parser says of a template; empty if it takes it."""
    text = yaml.safe_dump(samples.document(template=template, **spec))
    try:
        parse_workspace(text, name="w.yaml")
    except InvalidInput as error:
        return str(error)
    return ""


def volume(name: str = "a") -> Json:
    return {"name": name, "configMap": {"name": "a"}}


def mount(path: str, name: str = "a") -> Json:
    return {"name": name, "mountPath": path}


def sidecar(**more: Any) -> Json:
    return {"sidecars": [{"name": "a", "image": "registry.example/a", **more}]}


def test_every_field_together_is_taken_and_tried() -> None:
    assert complaint(EVERY_FIELD) == ""
    aliases = {each.alias for each in PodTemplate.model_fields.values()}
    assert set(EVERY_FIELD) == aliases == set(templates.FIELDS)
    assert set(PodTemplate.model_validate(EVERY_FIELD).used) == aliases


@given(templates.ACCEPTED)
def test_what_is_near_to_others_names_is_taken(template: Json) -> None:
    assert complaint(template) == ""


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ({"labels": {"weightyard.dev/workspace": "other"}}, "belong to others"),
        ({"labels": {"app.kubernetes.io/component": "agent"}}, "belong to others"),
        ({"labels": {"pod-template-hash": "a"}}, "belong to others"),
        ({"annotations": {"prometheus.io/port": "1"}}, "belong to others"),
        (
            {"annotations": {"container.apparmor.security.beta.kubernetes.io/server": "unconfined"}},
            "belong to others",
        ),
        ({"annotations": {"cdi.k8s.io/gpus": "nvidia.com/gpu=all"}}, "belong to others"),
        ({"labels": {"kueue.x-k8s.io/priority-class": "high"}}, "belong to others"),
        ({"labels": {"sidecar.istio.io/inject": "true"}}, "administers the namespace"),
        ({"labels": {"azure.workload.identity/use": "true"}}, "administers the namespace"),
        ({"labels": {"a b": "c"}}, "labels"),
        ({"labels": {f"n{i}": "a" for i in range(33)}}, "at most 32"),
        ({"annotations": {"a": "x" * 4097}}, "at most 4096"),
        ({"priorityClassName": "system-node-critical"}, "Kubernetes' own pods"),
        ({"imagePullPolicy": "Sometimes"}, "imagePullPolicy"),
        ({"runtimClassName": "nvidia"}, "did you mean 'runtimeClassName'?"),
        ({"hostNetwork": True}, "unknown field spec.template.hostNetwork"),
        ({"hostPID": True}, "unknown field"),
        ({"securityContext": {"runAsUser": 0}}, "unknown field"),
        ({"automountServiceAccountToken": True}, "unknown field"),
        ({"nodeSelector": {"a": "b"}}, "resources: {nodeSelector"),
        ({"tolerations": []}, "resources: {tolerations"),
        ({"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}, "volumes[0].hostPath"),
        ({"volumes": [{"name": "a"}]}, "exactly one of configMap, secret, emptyDir and"),
        ({"volumes": [{"name": "a", "emptyDir": {}}]}, "emptyDir.sizeLimit is missing"),
        ({"volumes": [volume(), volume()]}, "'a' twice"),
        ({"volumes": [volume("model")]}, "a volume of its own"),
        ({"volumes": [volume("adapter-sql")]}, "a volume of its own"),
        ({"volumes": [volume(f"n{i}") for i in range(17)]}, "at most 16"),
        ({"volumeMounts": [mount("/a")]}, "which isn't in volumes"),
        ({"volumes": [volume()], "volumeMounts": [mount("/a", "model")]}, "isn't in volumes"),
        ({"volumes": [volume()], "volumeMounts": [mount("/a"), mount("/a")]}, "'/a' twice"),
        ({"volumes": [volume()], "volumeMounts": [mount("/model/x")]}, "directories of its own"),
        ({"volumes": [volume()], "volumeMounts": [mount("/a/../model")]}, "mountPath"),
        ({"volumes": [volume()], "volumeMounts": [mount("/")]}, "mountPath"),
        ({"volumes": [volume()], "volumeMounts": [{**mount("/a"), "subPath": "../b"}]}, "subPath"),
        (sidecar(name="server"), "a container of its own"),
        (sidecar(securityContext={"privileged": True}), "sidecars[0].securityContext"),
        (sidecar(ports=[{"name": "http", "containerPort": 1}]), "http is the server's"),
        (sidecar(ports=[{"name": "a", "containerPort": 8000}]), "8000 is the server's"),
        (sidecar(ports=[{"name": "a", "containerPort": 9}, {"name": "b", "containerPort": 9}]), "'9' twice"),
        (sidecar(volumeMounts=[mount("/tmp")]), "isn't in volumes"),  # noqa: S108
        ({"volumes": [volume()], **sidecar(volumeMounts=[mount("/proc/1")])}, "the system's"),
        (sidecar(env=[{"name": "A"}]), "exactly one of value and secret"),
        (sidecar(resources={"nvidia.com/gpu": "1"}), "unknown field"),
        ({"sidecars": [{"name": f"n{i}", "image": "a"} for i in range(5)]}, "at most 4"),
        (
            {"topologySpreadConstraints": [{"topologyKey": "zone"}, {"topologyKey": "zone"}]},
            "'zone DoNotSchedule' twice",
        ),
        (
            {"topologySpreadConstraints": [{"topologyKey": "a", "labelSelector": {}}]},
            "unknown field",
        ),
        (
            {"topologySpreadConstraints": [
                {"topologyKey": "a", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2}
            ]},
            "minDomains goes with",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_is_told(template: Json, says: str) -> None:
    told = complaint(template)
    assert says in told
    assert told.startswith("w.yaml:")


@pytest.mark.parametrize(
    ("spec", "port", "taken"),
    [
        ({"runtime": {"port": 9000}}, 9000, True),
        ({"runtime": {"port": 9000}}, 8000, False),
        ({"runtime": {"port": 0}}, 8000, True),
        ({"resources": {"gpu": "L4", "gpus": 2, "nodes": 2}}, 29_500, True),
        ({}, 29_500, False),
    ],
)
def test_a_sidecars_port_is_none_of_the_servers(spec: Json, port: int, taken: bool) -> None:
    asked = sidecar(ports=[{"name": "a", "containerPort": port}])
    assert bool(complaint(asked, **spec)) == taken


def test_what_is_taken_is_what_the_pod_has() -> None:
    runtime = {"adapters": [{"name": "sql", "image": "registry.example/team/sql:v1"}]}
    workspace = samples.workspace(runtime=runtime)
    release = samples.release(workspace)
    made = pod_template(workspace, release, revision="abc")
    for each in volumes(workspace, release):
        assert re.search(VOLUME_TAKEN, each["name"])
    for each in volume_mounts(workspace, release):
        assert re.search(SERVER_PATHS, each["mountPath"])
    for each in made["spec"]["containers"]:
        assert re.search(CONTAINER_TAKEN, each["name"])
    assert SERVER_PORT_NAME == names.PORT_NAME
    for key in (
        *made["metadata"]["labels"],
        *made["metadata"]["annotations"],
        names.TRACK,
        names.CAPACITY,
    ):
        assert complaint({"labels": {key: "a"}}), key


def test_the_operators_list_names_fields() -> None:
    assert parse_fields("") == frozenset()
    assert parse_fields("labels, sidecars") == {"labels", "sidecars"}
    for wrong in ("hostNetwork", "volumeMounts", "labels;sidecars"):
        with pytest.raises(InvalidInput, match="has no field"):
            parse_fields(wrong)
    assert set(FIELDS) > DEFAULT_FIELDS


def test_fields_are_allowed_one_by_one_and_mounts_with_volumes() -> None:
    template = PodTemplate.model_validate(EVERY_FIELD)
    assert not_allowed(template, FIELDS) is None
    assert not_allowed(PodTemplate(), ()) is None
    for field in FIELDS:
        told = not_allowed(template, set(FIELDS) - {field})
        assert told is not None
        assert f"spec.template.{field}" in told.message
        assert told.message.count("spec.template.") == (2 if field == "volumes" else 1)
