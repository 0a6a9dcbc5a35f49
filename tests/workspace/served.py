"""What a server makes of a CustomResourceDefinition: which documents its schema and its CEL rules accept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celpy import celtypes
from jsonschema import Draft4Validator

from tests import cel

Json = dict[str, Any]
# Of Kubernetes' own library of lists.
_FUNCTIONS = {"isSorted": lambda listed: celtypes.BoolType(list(listed) == sorted(listed))}


def subschemas(schema: Json, path: str = "$") -> Iterator[tuple[str, Json]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from subschemas(each, f"{path}.{name}")
    for member in ("items", "additionalProperties"):
        if isinstance(schema.get(member), dict):
            yield from subschemas(schema[member], f"{path}[{member}]")


def assert_structural(schema: Json) -> None:
    """The rules of kubernetes.io: 'Specifying a structural schema'."""
    forbidden = {
        "$ref", "$defs", "definitions", "const", "title", "anyOf", "oneOf", "allOf", "not", "dependencies",
        "patternProperties", "additionalItems", "deprecated", "id", "readOnly", "writeOnly", "xml", "examples",
    }  # fmt: skip
    for path, each in subschemas(schema):
        assert each.get("type") in {
            "object",
            "array",
            "string",
            "integer",
            "number",
            "boolean",
        }, path
        assert not forbidden & set(each), path
        assert not ("properties" in each and "additionalProperties" in each), path
        assert each["type"] != "array" or "items" in each, path
        for exclusive in ("exclusiveMinimum", "exclusiveMaximum"):
            assert isinstance(each.get(exclusive, True), bool), path


def assert_columns_read_fields(definition: Json) -> None:
    """Every printer column's path exists in the schema."""
    (version,) = definition["spec"]["versions"]
    whole = version["schema"]["openAPIV3Schema"]
    for column in version["additionalPrinterColumns"]:
        first, *rest = column["jsonPath"].partition("[")[0].strip(".").split(".")
        schema = whole["properties"][first]
        for step in rest if first != "metadata" else []:
            schema = schema["properties"][step]


def broken_rules(schema: Json, value: Any) -> Iterator[str]:
    """The CEL rules that a value breaks, as a server walks them."""
    for each in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in each["rule"] and not cel.evaluate(
            each["rule"], {"self": value}, _FUNCTIONS
        ):
            yield each["message"]
    if isinstance(value, dict):
        for name, schema_of in schema.get("properties", {}).items():
            if name in value:
                yield from broken_rules(schema_of, value[name])
    if isinstance(value, list):
        for item in value:
            yield from broken_rules(schema["items"], item)
        keys = schema.get("x-kubernetes-list-map-keys", ())
        seen = [tuple(item.get(key) for key in keys) for item in value if keys]
        if len(set(seen)) != len(seen):
            yield "repeated keys"


def server_accepts(schema: Json, document: Json) -> bool:
    """Whether a server takes a document; transition rules aside."""
    if list(Draft4Validator(schema).iter_errors(document)):
        return False
    return not list(broken_rules(schema, document))
