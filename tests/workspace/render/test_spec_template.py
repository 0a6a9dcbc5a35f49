"""`spec.template` reaches every pod that it is for, and changes nothing that Weightyard itself decides of a pod."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import workspace as package
from tests.workspace import openapi, samples, templates
from tests.workspace.render.test_published import problems
from tests.workspace.templates import EVERY_FIELD
from workspace.controller.observation import revisions
from workspace.controller.servers.prewarm_pods import prewarm_pod
from workspace.render.cluster import render_kubernetes
from workspace.render.containers import container_security
from workspace.render.deployments import candidate_deployment
from workspace.render.groups import KIND
from workspace.render.llmd import render_llmd
from workspace.render.pod import pod_template
from workspace.render.routing import SystemSettings
from workspace.render.spare_nodes import spare_nodes
from workspace.schema import Workspace

Json = dict[str, Any]
GROUPED: Json = {"gpu": "L4", "gpus": 4, "nodes": 2}
FLOORED: Json = {"gpu": "L4", "provisioning": {"capacity": {"onDemandMinimum": 1}}}
# Modules that write a pod's containers, with what they do about the template.
POD_MAKERS = {
    "render/pod.py": "applies it",
    "render/groups.py": "makes leaders and workers from a server's template",
    "render/cluster.py": "adds limits to a server's template",
    "render/llmd.py": "applies it",
    "render/spare_nodes.py": "takes the shape of a server's template",
    "controller/servers/prewarm_pods.py": "stands in for a server where it may run",
    "render/kubernetes.py": "the activator is no server",
    "render/builder_objects.py": "a build is no server",
}


def pods_of(each: Workspace) -> list[Json]:
    """The pod templates of all servers that are rendered."""
    objects = render_kubernetes(each, samples.release(each), SystemSettings())
    found = [o["spec"]["template"] for o in objects if o["kind"] == "Deployment"]
    for group in (o["spec"]["leaderWorkerTemplate"] for o in objects if o["kind"] == KIND):
        found += [group["leaderTemplate"], group["workerTemplate"]]
    return found


def single(**spec: Any) -> list[Json]:
    return pods_of(samples.workspace(**spec))


def floored(**spec: Any) -> list[Json]:
    found = single(resources=FLOORED, replicas=2, **spec)
    assert len(found) == 2
    return found


def grouped(**spec: Any) -> list[Json]:
    found = single(resources=GROUPED, **spec)
    assert len(found) == 2
    return found


def candidate(**spec: Any) -> list[Json]:
    each = samples.workspace(**spec)
    template = pod_template(each, samples.release(each), revision="abc", uid="u")
    made = candidate_deployment(
        each, template, replicas=1, startup_seconds=1, environment=SystemSettings()
    )
    return [made["spec"]["template"]]


def stored(**spec: Any) -> list[Json]:
    """What the controller keeps of a version, and makes its pods from, as long as it exists."""
    each = samples.workspace(**spec)
    made = revisions.new_revision(each, samples.release(each), number=1, uid="u")
    found = revisions.from_document(revisions.to_document(each, made))
    return [found.template, *([found.worker] if found.worker else [])]


def llmd(**spec: Any) -> list[Json]:
    """The pod that llm-d's chart makes of the values, as far as it is about the template."""
    each = samples.workspace(**spec)
    values = render_llmd(each, samples.release(each))
    assert problems(values, "llm-d-modelservice-values.json") == []
    decode = values["decode"]
    containers = [{**c, **c["extraConfig"]} for c in decode["containers"]]
    account = values.get("serviceAccountOverride", each.name)
    return [
        {
            "metadata": {
                "labels": values["modelArtifacts"]["labels"],
                "annotations": decode.get("podAnnotations", {}),
            },
            "spec": {
                **decode["extraConfig"],
                "serviceAccountName": account,
                "containers": containers,
                "volumes": decode["volumes"],
            },
        }
    ]


def prewarm(**spec: Any) -> list[Json]:
    each = samples.workspace(**spec)
    made = revisions.new_revision(each, samples.release(each), number=1)
    return [prewarm_pod(each, made, "n1")]


def spares(**spec: Any) -> list[Json]:
    each = samples.workspace(resources={"gpu": "L4", "provisioning": {"warmSpares": 1}}, **spec)
    server = pod_template(each, samples.release(each), revision="abc", uid="u")
    template, _ = spare_nodes(each, server, gpus=1)
    return [template["template"]]


PLACES = {
    each.__name__: each
    for each in (single, floored, grouped, candidate, stored, llmd, prewarm, spares)
}
PLACING = {"runtimeClassName", "priorityClassName", "schedulerName"}
# What a place leaves out, as its tools can't or since its pods are no servers.
LEFT_OUT = {
    "llmd": {"labels", "sidecars"},
    # Labelled as servers are, they would get requests from whoever selects those.
    "prewarm": set(EVERY_FIELD) - PLACING - {"imagePullPolicy", "serviceAccountName"},
    "spares": set(EVERY_FIELD) - PLACING - {"sidecars"},
}


def has(pod: Json, field: str) -> bool:
    """Whether a pod shows a field of EVERY_FIELD."""
    metadata, spec, asked = pod["metadata"], pod["spec"], EVERY_FIELD[field]
    first, *beside = spec["containers"]

    def is_in(listed: list[Json], key: str) -> bool:
        return {each[key] for each in asked} <= {each[key] for each in listed}

    if field in ("labels", "annotations"):
        return bool(asked.items() <= metadata.get(field, {}).items())
    if field == "imagePullPolicy":
        return all(each.get(field) == asked for each in spec["containers"])
    lists = {
        "topologySpreadConstraints": (spec.get(field, []), "topologyKey"),
        "volumes": (spec.get(field, []), "name"),
        "volumeMounts": (first.get(field, []), "mountPath"),
        "sidecars": (beside, "name"),
    }
    return is_in(*lists[field]) if field in lists else bool(spec.get(field) == asked)


@pytest.mark.parametrize("field", EVERY_FIELD)
@pytest.mark.parametrize("place", PLACES)
def test_every_place_has_every_field_that_is_for_it(place: str, field: str) -> None:
    for pod in PLACES[place](template=EVERY_FIELD):
        assert has(pod, field) == (field not in LEFT_OUT.get(place, set()))
    for pod in PLACES[place]():
        assert not has(pod, field)


def test_no_module_makes_pods_and_forgets_the_template() -> None:
    """Whoever adds one decides here whether the template is for it."""
    root = Path(package.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if '"containers":' in path.read_text().replace('"containers": ("name",)', "")
    }
    assert found == set(POD_MAKERS)


def servers_unchanged(plain: Json, pod: Json, template: Json) -> None:
    """Raises where a template changed more of a server's pod than it may."""
    for part in ("labels", "annotations"):
        own = plain["metadata"][part]
        assert own.items() <= pod["metadata"][part].items()
        added = set(pod["metadata"][part]) - set(own)
        assert added == set(template.get(part, {}))
    before, after = copy.deepcopy(plain["spec"]), copy.deepcopy(pod["spec"])
    (server,), (first, *beside) = before.pop("containers"), after.pop("containers")
    mounts = first["volumeMounts"]
    assert mounts[: len(server["volumeMounts"])] == server["volumeMounts"]
    assert len({each["mountPath"] for each in mounts}) == len(mounts)
    first["volumeMounts"] = server["volumeMounts"]
    if "imagePullPolicy" in template:
        assert first.pop("imagePullPolicy") == template["imagePullPolicy"]
    assert first == server
    for each in beside:
        assert each["securityContext"] == container_security()
        assert each["name"] != server["name"]
        assert not {"gpu"} & {n.rpartition("/")[2] for n in each["resources"].get("requests", {})}
        assert "http" not in {port["name"] for port in each.get("ports", ())}
    volumes = after["volumes"]
    assert volumes[: len(before["volumes"])] == before["volumes"]
    assert len({each["name"] for each in volumes}) == len(volumes)
    kinds = {kind for each in volumes for kind in each if kind != "name"}
    assert kinds <= {"csi", "emptyDir", "configMap", "secret", "persistentVolumeClaim"}
    for each in after.pop("topologySpreadConstraints"):
        # Ours count the servers alone, whatever the template says.
        assert each["labelSelector"] == before["topologySpreadConstraints"][0]["labelSelector"]
    security = after.pop("securityContext")
    assert before["securityContext"].items() <= security.items()
    assert set(security) - set(before["securityContext"]) <= {"fsGroup", "fsGroupChangePolicy"}
    for name in ("volumes", "topologySpreadConstraints", "securityContext"):
        before.pop(name)
        after.pop(name, None)
    for name in PLACING:
        assert after.pop(name, None) == template.get(name)
    before["serviceAccountName"] = template.get("serviceAccountName", before["serviceAccountName"])
    assert after == before


SPECS = st.sampled_from([{}, {"resources": GROUPED}, {"resources": FLOORED, "replicas": 2}])


@given(SPECS, templates.TEMPLATES | templates.ACCEPTED)
def test_whatever_a_template_says_our_own_part_of_the_pod_stays(
    spec: Mapping[str, Any], template: Json
) -> None:
    try:
        each = samples.workspace(**spec, template=template)
    except ValidationError:
        return
    plain = samples.workspace(**spec)
    for before, after in zip(pods_of(plain), pods_of(each), strict=True):
        servers_unchanged(before, after, template)


@given(SPECS, templates.ACCEPTED)
def test_a_template_changes_no_other_object(spec: Mapping[str, Any], template: Json) -> None:
    def others(each: Workspace) -> list[Json]:
        objects = render_kubernetes(each, samples.release(each), SystemSettings())
        for o in objects:
            if o["kind"] == "Deployment":
                del o["spec"]["template"]
            if o["kind"] == KIND:
                del o["spec"]["leaderWorkerTemplate"]
        return objects

    assert others(samples.workspace(**spec, template=template)) == others(samples.workspace(**spec))


@given(SPECS, templates.ACCEPTED | st.just(EVERY_FIELD))
def test_old_and_new_servers_take_and_keep_what_is_rendered(
    spec: Mapping[str, Any], template: Json
) -> None:
    each = samples.workspace(**spec, template=template)
    for version in (openapi.OLDEST, openapi.NEWEST):
        for pod in pods_of(each):
            assert openapi.problems({"apiVersion": "v1", "kind": "Pod", **pod}, version) == []


@pytest.mark.parametrize("place", ["prewarm", "spares"])
@given(template=templates.ACCEPTED | st.just(EVERY_FIELD))
def test_stand_ins_are_valid_pods_too(place: str, template: Json) -> None:
    for pod in PLACES[place](template=template):
        document = {**pod, "apiVersion": "v1", "kind": "Pod"}
        assert openapi.problems(document, openapi.OLDEST) == []


def test_some_hostile_templates_are_accepted() -> None:
    """Else what is said of them above would say nothing."""
    accepted = 0

    @given(templates.TEMPLATES)
    def count(template: Json) -> None:
        nonlocal accepted
        try:
            samples.workspace(template=template)
        except ValidationError:
            return
        accepted += bool(template)

    count()
    assert accepted > 0


def test_what_each_field_becomes() -> None:
    (pod,) = single(template=EVERY_FIELD)
    spec = pod["spec"]
    server, shipper = spec["containers"]
    assert (server["name"], shipper["name"]) == ("server", "log-shipper")
    assert shipper == {
        "name": "log-shipper",
        "image": "registry.example/team/shipper:v1",
        "imagePullPolicy": "Always",
        "command": ["/shipper"],
        "args": ["--to", "logs.example.com"],
        "env": [
            {"name": "LEVEL", "value": "info"},
            {
                "name": "TOKEN",
                "valueFrom": {"secretKeyRef": {"name": "shipper", "key": "token"}},
            },
            # With a RuntimeClass it would see all GPUs.
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},
        ],
        "ports": [{"name": "metrics", "containerPort": 9102, "protocol": "TCP"}],
        # In the server's form.
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "128Mi"},
        },
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "buffer", "mountPath": "/tmp"}],  # noqa: S108
    }
    assert server["volumeMounts"][-2:] == EVERY_FIELD["volumeMounts"]
    buffer = next(each for each in spec["volumes"] if each["name"] == "buffer")
    assert buffer["emptyDir"] == {"sizeLimit": "1Gi", "medium": "Memory"}
    assert spec["automountServiceAccountToken"] is False
    # Root owns a new claim's files.
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"]


def test_a_sidecar_sees_gpus_where_it_asks_for_them_alone() -> None:
    asked = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}
    sidecar = {"name": "a", "image": "registry.example/a"}
    for template, env in (
        ({"sidecars": [sidecar]}, None),
        ({"sidecars": [sidecar], "runtimeClassName": "nvidia"}, [{**asked, "value": "void"}]),
        ({"sidecars": [{**sidecar, "env": [asked]}], "runtimeClassName": "nvidia"}, [asked]),
    ):
        (pod,) = single(template=template)
        assert pod["spec"]["containers"][1].get("env") == env


def test_a_claim_that_is_only_read_keeps_its_owner() -> None:
    claim = {"claimName": "a", "readOnly": True}
    (pod,) = single(template={"volumes": [{"name": "a", "persistentVolumeClaim": claim}]})
    assert "fsGroup" not in pod["spec"]["securityContext"]


@pytest.mark.parametrize(("when", "count"), [("ScheduleAnyway", 1), ("DoNotSchedule", 2)])
def test_a_constraint_of_the_same_kind_replaces_ours(when: str, count: int) -> None:
    asked = {"topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": when, "maxSkew": 3}
    (pod,) = single(template={"topologySpreadConstraints": [asked]})
    found = pod["spec"]["topologySpreadConstraints"]
    assert len(found) == count
    assert found[-1]["maxSkew"] == 3


def test_a_stand_in_gets_no_gpu_by_the_class_of_its_runtime() -> None:
    """Images of servers ask NVIDIA's runtime for all GPUs, by a variable of theirs."""
    (pod,) = prewarm(template={"runtimeClassName": "nvidia"})
    assert pod["spec"]["containers"][0]["env"] == [
        {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
    ]
    (plain,) = prewarm()
    assert "env" not in plain["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("one", "other"),
    [({}, {"labels": {"team": "a"}}), ({"labels": {"team": "a"}}, {"labels": {"team": "b"}})],
)
def test_another_template_is_another_version(one: Json, other: Json) -> None:
    first, second, again = (
        revisions.revision_name(samples.workspace(template=each)) for each in (one, other, one)
    )
    assert first == again != second
    # Workspaces of before have the versions of before.
    assert revisions.revision_name(samples.workspace()) == revisions.revision_name(
        samples.workspace(template={})
    )
