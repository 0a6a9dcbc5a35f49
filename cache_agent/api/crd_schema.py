"""Builds a CustomResourceDefinition from a pydantic model: structural schema, CEL rules and printer columns. Pure.

Whatever `kubectl apply` accepts, the models must parse. The schema comes from the models; checks that they make in code
are repeated as CEL rules, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from cache_agent.api.kube_objects import GROUP, VERSION

Json = dict[str, Any]
Path = tuple[str, ...]  # property names; `[]` enters a list's items
Rules = Mapping[
    Path, tuple[tuple[str, str], ...]
]  # (CEL rule, message) pairs, by their place in the schema
Column = tuple[str, str, str, int]  # a printer column: name, type, JSONPath, priority

_KEPT: Final = (
    "type", "format", "description", "enum", "pattern", "required", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "maxProperties",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CustomResource:
    """A kind of object. `rules` apply to the whole object; `subresources` are added to the status subresource."""

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


def definition(resource: CustomResource) -> Json:
    """The CustomResourceDefinition of a resource."""
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


# For text that names a model image in a cluster. A directory would be one of the node, or of the controller's pod:
# whoever may create the object could find out which files exist there.
REGISTRY_IMAGE: Final = (
    (
        "(!self.startsWith('oci:') || self.startsWith('oci://')) && !self.startsWith('oci:///') && "
        "(!self.startsWith('docker:') || self.startsWith('docker://')) && !self.startsWith('docker:///') && "
        "!self.startsWith('/') && !self.startsWith('.') && !self.startsWith('~')",
        "an image is in a registry, registry.example/team/model:tag: push a layout or an engine's image there",
    ),
)


# For maps of labels: a structural schema can't bound keys.
LABEL_KEYS: Final = (
    "self.all(key, key.size() > 0 && key.size() <= 317)",
    "a label's name has 1 to 317 characters",
)


def model_schema(model: type[BaseModel], rules: Rules | None = None) -> Json:
    """The structural schema of a model, with its CEL rules."""
    whole = model.model_json_schema(by_alias=True)
    schema = structural(whole, whole.get("$defs", {}))
    for path, found in (rules or {}).items():
        at(schema, path)["x-kubernetes-validations"] = validations(found)
    return schema


def keyed(schema: Json, path: Path, key: str) -> None:
    """Make a list a map by `key`, so that the API server refuses duplicates and merges items by key."""
    at(schema, path).update({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]})


def validations(rules: Sequence[tuple[str, str]]) -> list[Json]:
    """Rules as the schema's `x-kubernetes-validations`."""
    return [{"rule": rule, "message": message} for rule, message in rules]


def at(schema: Json, path: Path) -> Json:
    """The part of a schema at a path."""
    for step in path:
        schema = schema["items"] if step == "[]" else schema["properties"][step]
    return schema


def structural(schema: Json, definitions: Mapping[str, Json]) -> Json:
    """A JSON schema as Kubernetes accepts it: without references and null, with bounds as in OpenAPI 3.0."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        # A field's own description, beside the reference, overrides the referenced class's.
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
    """The schema of a map's values. Structural schemas can't constrain keys, so CEL rules do that."""
    (only,) = patterns.values()
    return structural(only, definitions)


def _bounds(schema: Json) -> Json:
    # OpenAPI 3.0 has boolean exclusive bounds; JSON Schema 2020-12, which pydantic writes, has numeric ones.
    bounds: Json = {}
    for exclusive, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            bounds |= {plain: schema[exclusive], exclusive: True}
    return bounds


def _version(resource: CustomResource) -> Json:
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
