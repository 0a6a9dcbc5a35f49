"""The Workspace as a CustomResourceDefinition: a structural schema made of the pydantic one, rules as CEL, its status.

Whatever `kubectl apply` accepts, the controller can parse: shape comes from the same models; the rules that pydantic
checks in code stand here as CEL, held against it by a test. Run `python -m workspace.crd` to print it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml

from workspace.schema import API_VERSION, KIND, Spec

Json = dict[str, Any]

GROUP, _, VERSION = API_VERSION.partition("/")
PLURAL: Final = "workspaces"
CONDITIONS: Final = ("ModelResolved", "Cached", "Scheduled", "Available", "Ready")

_NAME_RULE: Final = {
    "rule": "self.metadata.name.matches('^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$')",
    "message": "a Workspace's name is at most 52 lower-case letters, digits and '-', and starts with a letter",
}

# Path of properties (`[]` enters a list's items) -> the rules there.
RULES: Final[Mapping[tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    (): (
        ("!(has(self.replicas) && has(self.scale))", "give replicas or scale, not both"),
    ),
    ("model",): (
        (
            "[has(self.image), has(self.hub), has(self.s3)].filter(given, given).size() == 1",
            "give exactly one of image, hub and s3",
        ),
    ),
    ("runtime", "env", "[]"): (
        ("has(self.value) != has(self.secret)", "give exactly one of value and secret"),
    ),
    ("resources",): (
        ("!(has(self.fraction) && has(self.migProfile))", "give fraction or migProfile, not both"),
        (
            "!(has(self.fraction) || has(self.migProfile)) || !has(self.gpus) || self.gpus == 1",
            "a shared GPU means gpus: 1",
        ),
    ),
    ("scale",): (
        ("!has(self.min) || self.min <= self.max", "min is above max"),
        (
            "!has(self.by) || self.by != 'hpa' || !has(self.min) || self.min > 0",
            "a HorizontalPodAutoscaler can't scale to 0: give min 1, or by: builtin",
        ),
        (
            "!has(self.by) || self.by != 'keda' || has(self.prometheus)",
            "by: keda needs prometheus, the address that KEDA asks for the queue's depth",
        ),
    ),
}  # fmt: skip

# Lists whose items have a name that stands once: the server refuses repeats and merges by it.
_KEYED: Final = (("runtime", "env"), ("runtime", "adapters"))

_COLUMNS: Final = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 0),
    ("Variant", "string", ".status.variant", 0),
    ("Replicas", "integer", ".status.readyReplicas", 0),
    ("Cached", "string", ".status.cached", 0),
    ("Image", "string", ".spec.model.image", 1),
    ("Revision", "integer", ".status.revision", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def definition() -> Json:
    """The CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND, "listKind": f"{KIND}List", "plural": PLURAL, "singular": "workspace",
                "shortNames": ["ws"], "categories": ["weightyard"],
            },
            "versions": [_version()],
        },
    }  # fmt: skip


def spec_schema() -> Json:
    """The structural schema of a Workspace's spec, with its rules."""
    whole = Spec.model_json_schema(by_alias=True)
    schema = structural(whole, whole.get("$defs", {}))
    for path, rules in RULES.items():
        found = [{"rule": rule, "message": message} for rule, message in rules]
        _at(schema, path)["x-kubernetes-validations"] = found
    for path in _KEYED:
        _at(schema, path).update(
            {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        )
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
    if "items" in schema:
        plain["items"] = structural(schema["items"], definitions)
    return plain | _bounds(schema)


_KEPT: Final = (
    "type", "description", "enum", "pattern", "required", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems",
)  # fmt: skip


def _bounds(schema: Json) -> Json:
    bounds: Json = {}
    for exclusive, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            bounds |= {plain: schema[exclusive], exclusive: True}
    return bounds


def _at(schema: Json, path: tuple[str, ...]) -> Json:
    for step in path:
        schema = schema["items"] if step == "[]" else schema["properties"][step]
    return schema


def _version() -> Json:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": "A model to serve: which one, with what, on what, how many times.",
                "required": ["spec"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"type": "object"},
                    "spec": spec_schema(),
                    "status": status_schema(),
                },
                "x-kubernetes-validations": [_NAME_RULE],
            }
        },
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority}
            for name, kind, path, priority in _COLUMNS
        ],
    }


def status_schema() -> Json:
    """What the controller reports."""
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    condition = {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": {"type": "string", "enum": list(CONDITIONS)},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": text,
            "message": {**text, "description": "What is so, and what to do about it."},
            "observedGeneration": count,
            "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    }
    return {
        "type": "object",
        "properties": {
            "observedGeneration": count,
            "conditions": {
                "type": "array",
                "items": condition,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
            "replicas": count,
            "readyReplicas": count,
            "selector": {**text, "description": "Selects the servers' pods; read by autoscalers."},
            "cached": {**text, "description": "Nodes that hold the model, of those that should."},
            "image": {**text, "description": "The model's image by digest."},
            "modelKey": text,
            "variant": text,
            "gpus": count,
            "contextLength": count,
            "url": {**text, "description": "Where requests go, inside the cluster."},
            "revision": count,
            "notChosen": {
                "type": "array",
                "items": text,
                "description": "Why better variants weren't chosen.",
            },
        },
    }


def main() -> None:
    """Print the definition as YAML."""
    print(to_yaml(), end="")


def to_yaml() -> str:
    """The file in the chart."""
    return yaml.safe_dump(definition(), sort_keys=False, width=120)


if __name__ == "__main__":
    main()
