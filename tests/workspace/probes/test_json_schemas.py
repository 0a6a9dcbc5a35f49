"""JSON Schemas from anyone accept what the reference implementation accepts, and nothing in them can take long."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from modelimage.errors import InvalidInput
from tests.examples import examples
from workspace.probes.json_schemas import JsonSchema
from workspace.probes.steps import StepBudget, TooManySteps

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 2.0]),
    st.text("ab", max_size=3),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)
_TYPES = ["object", "array", "string", "boolean", "null", "number", "integer"]


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=2)
    small = st.integers(0, 3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(st.sampled_from(_TYPES), st.lists(st.sampled_from(_TYPES), min_size=1, unique=True)),
            "enum": st.lists(_values, min_size=1, max_size=3), "const": _values,
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "required": st.lists(st.sampled_from("abc"), unique=True), "additionalProperties": inner,
            "items": inner, "not": inner, "anyOf": several, "allOf": several, "oneOf": several,
            "minItems": small, "maxItems": small, "minLength": small, "maxLength": small, "minProperties": small,
            "maxProperties": small, "minimum": small, "maximum": small, "exclusiveMinimum": small,
            "exclusiveMaximum": small, "pattern": st.sampled_from(["a", "^a", "b$", "a+b"]), "title": st.just("t"),
        },
    )  # fmt: skip


@settings(max_examples=examples(40))
@given(
    st.recursive(st.one_of(st.booleans(), _schemas(st.booleans())), _schemas, max_leaves=4), _values
)
def test_it_accepts_what_the_reference_accepts(schema: Any, value: Any) -> None:
    expected = Draft202012Validator(schema).is_valid(value)
    assert JsonSchema(schema).accepts(value, StepBudget()) == expected


def _nested(depth: int) -> Any:
    return {"items": _nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"}, {"$ref": "https://example.com/schema.json"}, {"$dynamicRef": "#x"}, {"$defs": {"a": {}}},
        {"properties": {"a": {"$ref": "#"}}}, {"anyOf": [{"$ref": "#"}]}, {"typ": "string"}, {"type": "text"},
        {"type": [{}]}, {"required": "a"}, {"minItems": -1}, {"minimum": float("nan")}, {"minimum": float("inf")},
        {"properties": []}, {"anyOf": []}, {"pattern": "(?=a)"}, {"pattern": 3}, {"items": [{}]}, [], "string", None,
        {3: 4}, _nested(17), {"patternProperties": {"(a+)+$": {}}},
    ],
)  # fmt: skip
def test_what_isnt_supported_is_refused_when_it_is_read(schema: Any) -> None:
    with pytest.raises(InvalidInput):
        JsonSchema(schema)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"items": {"enum": list(range(5000))}}, [4999] * 1000),
        ({"items": {"anyOf": [{"pattern": "(a+)+$"}, True]}}, ["ab" * 500] * 500),
        ({"items": {"anyOf": [*[{"type": "null"}] * 1000, True]}}, [1] * 1000),
        ({"items": {"required": ["a"] * 6000}}, [{"a": 1}] * 100),
        ({"const": [[0] * 1000] * 100}, [[0] * 1000] * 100),
    ],
)  # fmt: skip
def test_a_schema_made_to_take_long_ends(schema: Any, value: Any) -> None:
    assert len(json.dumps(schema)) < 1 << 20
    with pytest.raises(TooManySteps):
        JsonSchema(schema).accepts(value, StepBudget())
