"""What a writer of Workspaces may name: evaluated from the chart's admission policy, as a server does."""

from __future__ import annotations

from typing import Any

import pytest
from celpy.celtypes import BoolType, MapType, StringType

from tests import cel
from tests.chart.charting import Json, Refused, find, render


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


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": ["registry.example"]},
        {"images": ["a/'b"]},
        {"secrets": ["a'b"]},
        {"tolerations": ["a b"]},
    ],
)
def test_no_value_breaks_the_expressions(wrong: Json) -> None:
    with pytest.raises(Refused):
        render({"controller": {"workspaces": wrong}})
