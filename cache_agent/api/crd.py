"""From a pydantic model to a CustomResourceDefinition: a structural schema, rules as CEL, printer columns.

Whatever `kubectl apply` accepts, the models parse: shape comes from them; rules that they check in code stand beside
them as CEL, held against each other by tests. Pure: dictionaries in and out, nothing written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from cache_agent.api.document import GROUP, VERSION

Json = dict[str, Any]
Path = tuple[str, ...]  # of properties; `[]` enters a list's items
Rules = Mapping[
    Path, tuple[tuple[str, str], ...]
]  # CEL rules and what they tell, by where they stand
Column = tuple[str, str, str, int]  # a printer column: name, type, JSONPath, priority

_KEPT: Final = (
    "type", "format", "description", "enum", "pattern", "required", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "maxProperties",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object. `rules` are those of the whole object; `subresources` come beside the status."""

    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    scope: str
    description: str
    spec: Json
    status: Json
    columns: Sequence[Column]
    rules: tuple[tuple[str, str], ...] = ()
    subresources: Mapping[str, Json] | None = None


def definition(resource: Resource) -> Json:
    """The CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": resource.scope,
            "names": {
                "kind": resource.kind, "listKind": f"{resource.kind}List", "plural": resource.plural,
                "singular": resource.singular, "shortNames": list(resource.short_names),
                "categories": ["weightyard"],
            },
            "versions": [_version(resource)],
        },
    }  # fmt: skip


def model_schema(model: type[BaseModel], rules: Rules | None = None) -> Json:
    """The structural schema of a model, with its rules."""
    whole = model.model_json_schema(by_alias=True)
    schema = structural(whole, whole.get("$defs", {}))
    for path, found in (rules or {}).items():
        at(schema, path)["x-kubernetes-validations"] = validations(found)
    return schema


def keyed(schema: Json, path: Path, key: str) -> None:
    """Make a list one whose items have a name that stands once: the server refuses repeats and merges by it."""
    at(schema, path).update({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]})


def validations(rules: Sequence[tuple[str, str]]) -> list[Json]:
    """Rules as a schema has them."""
    return [{"rule": rule, "message": message} for rule, message in rules]


def at(schema: Json, path: Path) -> Json:
    """The part of a schema at a path."""
    for step in path:
        schema = schema["items"] if step == "[]" else schema["properties"][step]
    return schema


def structural(schema: Json, definitions: Mapping[str, Json]) -> Json:
    """A JSON schema as Kubernetes takes it: no references, no null, bounds as OpenAPI 3.0 writes them."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        own = {name: value for name, value in schema.items() if name != "$ref"}
        return structural({**target, **own}, definitions)
    if "anyOf" in schema:
        (kind,) = [each for each in schema["anyOf"] if each.get("type") != "null"]
        own = {name: value for name, value in schema.items() if name != "anyOf"}
        return structural({**kind, **own}, definitions)
    plain = {name: value for name, value in schema.items() if name in _KEPT}
    if "const" in schema:
        plain["enum"] = [schema["const"]]
    if "properties" in schema:
        plain["properties"] = {
            name: structural(each, definitions) for name, each in schema["properties"].items()
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        plain["additionalProperties"] = structural(schema["additionalProperties"], definitions)
    elif "patternProperties" in schema:
        plain["additionalProperties"] = _of_any_name(schema["patternProperties"], definitions)
    if "items" in schema:
        plain["items"] = structural(schema["items"], definitions)
    return plain | _bounds(schema)


def _of_any_name(patterns: Mapping[str, Json], definitions: Mapping[str, Json]) -> Json:
    """A structural schema can't say what keys look like; rules can."""
    (only,) = patterns.values()
    return structural(only, definitions)


def _bounds(schema: Json) -> Json:
    bounds: Json = {}
    for exclusive, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            bounds |= {plain: schema[exclusive], exclusive: True}
    return bounds


def _version(resource: Resource) -> Json:
    schema: Json = {
        "type": "object",
        "description": resource.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": resource.spec,
            "status": resource.status,
        },
    }
    if resource.rules:
        schema["x-kubernetes-validations"] = validations(resource.rules)
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}, **(resource.subresources or {})},
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority}
            for name, kind, path, priority in resource.columns
        ],
    }
