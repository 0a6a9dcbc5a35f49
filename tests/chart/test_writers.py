"""What a writer of Workspaces may name: evaluated from the chart's admission policy, as a server does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from celpy.celtypes import BoolType, MapType, StringType

from tests import cel
from tests.chart.charting import CHART, Json, Refused, find, render
from workspace.template_spec import (
    DEFAULT_FIELDS,
    FIELDS,
    PodTemplate,
    not_allowed,
    parse_fields,
)


def refusals(values: Json, new: Json, old: Json | None = None, *, reads: bool = False) -> list[str]:
    """What is refused to a writer who may or may not read the namespace's secrets."""
    policy = find(render(values), "ValidatingAdmissionPolicy", "-workspaces")["spec"]
    asked: list[str] = []

    def step(receiver: Any, argument: Any) -> Any:
        asked.append(str(argument))
        return receiver

    def allowed(receiver: Any) -> BoolType:
        assert asked[-4:] == ["", "secrets", "team-a", "get"]
        return BoolType(reads)

    functions = {
        **dict.fromkeys(("group", "resource", "namespace", "check"), step),
        "allowed": allowed,
    }
    seen = {
        "request": {"operation": "CREATE" if old is None else "UPDATE", "namespace": "team-a"},
        "object": {"spec": new},
        "oldObject": {"spec": old} if old is not None else {},
        "authorizer": {},
    }
    variables: dict[Any, Any] = {}

    def value(expression: str) -> Any:
        return cel.evaluate(expression, seen, functions, variables=MapType(variables))

    if not all(value(each["expression"]) for each in policy["matchConditions"]):
        return []
    for each in policy["variables"]:
        variables[StringType(each["name"])] = value(each["expression"])
    return [e["message"] for e in policy["validations"] if not value(e["expression"])]


TEMPLATE_FIELDS = "the operator doesn't let Workspaces set spec.template."


def spec(
    *, image: str | None = None, tolerations: list[Json] | None = None, **secrets: str
) -> Json:
    """A spec that names secrets as `pull`, `build` or `env`."""
    model: Json = {"image": "r.example/m:v1"}
    runtime: Json = {"env": [{"name": "A", "value": "b"}]}
    if "pull" in secrets:
        model["pullSecret"] = secrets["pull"]
    if "build" in secrets:
        model["build"] = {"to": "r.example/m", "secret": secrets["build"]}
    if "env" in secrets:
        runtime["env"].append({"name": "B", "secret": {"name": secrets["env"], "key": "k"}})
    if image is not None:
        runtime["image"] = image
    resources = {} if tolerations is None else {"resources": {"tolerations": tolerations}}
    return {"model": model, "runtime": runtime, **resources}


BARE: Json = {"model": {"image": "r.example/m:v1"}}


@pytest.mark.parametrize("way", ["pull", "build", "env"])
def test_secrets_are_named_by_who_may_read_them(way: str) -> None:
    named = spec(**{way: "admin"})
    assert refusals({}, named)
    assert refusals({}, named, BARE)
    assert not refusals({}, named, reads=True)
    assert not refusals({"controller": {"workspaces": {"secrets": ["admin"]}}}, named)
    assert refusals({"controller": {"workspaces": {"secrets": ["other"]}}}, named)
    # Somebody else's change of a Workspace that names it already.
    assert not refusals({}, {**named, "replicas": 2}, named)
    assert refusals({}, spec(pull="new", **({way: "admin"} if way != "pull" else {})), named)


@pytest.mark.parametrize("use", ["pull", "build"])
def test_a_secret_that_pods_only_use_does_not_become_one_that_they_read(use: str) -> None:
    values = {"controller": {"workspaces": ALL}}
    old = spec(**{use: "admin"})
    volume = {"volumes": [{"name": "v", "secret": {"secretName": "admin"}}]}
    for new in (
        spec(**{use: "admin"}, env="admin"),
        {**old, "template": volume},
        {**old, "template": {"sidecars": [sidecar("admin")]}},
    ):
        assert refusals(values, new, old)
        assert not refusals(values, new, old, reads=True)
    # What is read already may be used too.
    assert not refusals(values, spec(**{use: "admin"}, env="admin"), spec(env="admin"))


@pytest.mark.parametrize("document", [BARE, spec()])
def test_without_secrets_nothing_is_asked(document: Json) -> None:
    assert not refusals({}, document)


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        (None, True),
        ("registry.example/team/vllm:v1", True),
        ("registry.example.evil.com/team/vllm", False),
        ("registry.example/teamx/vllm", False),
        ("vllm/vllm-openai", False),
    ],
)
def test_images_begin_as_the_operator_says(image: str | None, allowed: bool) -> None:
    values = {"controller": {"workspaces": {"images": ["registry.example/team/"]}}}
    assert (not refusals(values, spec(image=image))) == allowed
    assert not refusals({}, spec(image=image))


@pytest.mark.parametrize(
    ("tolerations", "allowed"),
    [
        ([], True),
        ([{"key": "gpu", "operator": "Exists"}], True),
        ([{"operator": "Exists"}], False),
        ([{"key": "gpu"}, {"key": "node-role.kubernetes.io/control-plane"}], False),
    ],
)
def test_taints_are_tolerated_as_the_operator_says(tolerations: list[Json], allowed: bool) -> None:
    values = {"controller": {"workspaces": {"tolerations": ["gpu"]}}}
    assert (not refusals(values, spec(tolerations=tolerations))) == allowed
    assert not refusals({}, spec(tolerations=tolerations))
    assert not refusals(values, BARE)


VALUES: dict[str, Json | str | list[Json]] = {
    "annotations": {"example.com/a": "b"},
    "imagePullPolicy": "Always",
    "labels": {"team": "a"},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "schedulerName": "other",
    "serviceAccountName": "admin",
    "sidecars": [{"name": "a", "image": "registry.example/team/a"}],
    "topologySpreadConstraints": [{"topologyKey": "zone"}],
    "volumes": [{"name": "a", "configMap": {"name": "a"}}],
}


def test_the_policy_knows_every_field() -> None:
    assert set(VALUES) == set(FIELDS)
    values = yaml.safe_load((CHART / "values.yaml").read_text())["controller"]["workspaces"]
    assert set(values["templateFields"]) == DEFAULT_FIELDS
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = schema["properties"]["controller"]["properties"]["workspaces"]["properties"]
    assert set(found["templateFields"]["items"]["enum"]) == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_fields_of_the_template_are_set_as_the_operator_says(field: str) -> None:
    asked = {**BARE, "template": {field: VALUES[field]}}
    message = f"{TEMPLATE_FIELDS}{field} (controller.workspaces.templateFields of the chart)"
    expected = [] if field in DEFAULT_FIELDS else [message]
    assert refusals({}, asked) == expected
    assert refusals({}, asked, BARE) == expected
    nothing, this = ({"controller": {"workspaces": {"templateFields": f}}} for f in ([], [field]))
    assert refusals(nothing, asked) == [message]
    assert refusals(this, asked) == []
    assert len(refusals(this, {**BARE, "template": VALUES})) == len(FIELDS) - 1


@pytest.mark.parametrize("field", FIELDS)
def test_the_policy_and_the_controller_allow_the_same(field: str) -> None:
    value = VALUES[field]
    # An empty collection asks for nothing.
    for given in (value, *([] if isinstance(value, str) else [type(value)()])):
        template = PodTemplate.model_validate({field: given})
        for allowed in (DEFAULT_FIELDS, frozenset(FIELDS) - {field}, frozenset({field})):
            values = {"controller": {"workspaces": {"templateFields": sorted(allowed)}}}
            refused = refusals(values, {**BARE, "template": {field: given}})
            assert bool(refused) == (not_allowed(template, allowed) is not None)


def test_the_controller_gets_what_the_operator_says() -> None:
    for fields in ([], ["labels", "sidecars"]):
        rendered = render({"controller": {"workspaces": {"templateFields": fields}}})
        (container,) = find(rendered, "Deployment", "-controller")["spec"]["template"]["spec"][
            "containers"
        ]
        (given,) = [each for each in container["args"] if each.startswith("--template-fields=")]
        assert parse_fields(given.partition("=")[2]) == set(fields)


def sidecar(*secrets: str, image: str = "a") -> Json:
    env = [
        {"name": f"N{i}", "secret": {"name": each, "key": "k"}} for i, each in enumerate(secrets)
    ]
    return {"name": "a", "image": image, "env": [{"name": "A", "value": "b"}, *env]}


ALL = {"templateFields": list(FIELDS)}


@pytest.mark.parametrize(
    "template",
    [{"volumes": [{"name": "v", "secret": {"secretName": "admin"}}]}, {"sidecars": [sidecar("admin")]}],
    ids=["volume", "sidecar"],
)  # fmt: skip
def test_secrets_of_a_template_are_named_by_who_may_read_them(template: Json) -> None:
    values = {"controller": {"workspaces": ALL}}
    named = {**BARE, "template": template}
    assert refusals(values, named)
    assert refusals(values, named, BARE)
    assert not refusals(values, named, reads=True)
    assert not refusals({"controller": {"workspaces": {**ALL, "secrets": ["admin"]}}}, named)
    # Somebody else's change of a Workspace that names it already.
    assert not refusals(values, {**named, "replicas": 2}, named)
    more = {**BARE, "template": {**template, "sidecars": [sidecar("admin", "new")]}}
    assert refusals(values, more, named)


@pytest.mark.parametrize(
    ("image", "allowed"),
    [("registry.example/team/x:v1", True), ("registry.example/teamx/x", False)],
)
def test_images_of_sidecars_begin_as_the_operator_says(image: str, allowed: bool) -> None:
    values = {"controller": {"workspaces": {**ALL, "images": ["registry.example/team/"]}}}
    asked = {**BARE, "template": {"sidecars": [sidecar(image=image)]}}
    assert (not refusals(values, asked)) == allowed
    assert not refusals({"controller": {"workspaces": ALL}}, asked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"templateFields": ["hostNetwork"]},
        {"templateFields": ["volumeMounts"]},
        {"images": ["registry.example"]},
        {"images": ["a/'b"]},
        {"secrets": ["a'b"]},
        {"tolerations": ["a b"]},
    ],
)
def test_no_value_breaks_the_expressions(wrong: Json) -> None:
    with pytest.raises(Refused):
        render({"controller": {"workspaces": wrong}})
