"""Kubernetes' own OpenAPI schemas, from `kubernetes-validate`: what a server of a version accepts and keeps."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

Json = dict[str, Any]
OLDEST, NEWEST = "1.27.0", "1.37.0"


@cache
def definitions(version: str) -> Json:
    """All types of one version, by name, as `strict` schemas: no field that isn't named."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    found: Json = json.loads((folder / "_definitions.json").read_text())["$defs"]
    return found


@cache
def _kinds(version: str) -> dict[tuple[str, str, str], str]:
    return {
        (each["group"], each["version"], each["kind"]): name
        for name, schema in definitions(version).items()
        for each in schema.get("x-kubernetes-group-version-kind", ())
    }


@cache
def _validator(name: str, version: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions(version)})


def schema_name(document: Json, version: str) -> str | None:
    """The type of a document; None when the version has no such kind."""
    group, _, api = document["apiVersion"].rpartition("/")
    return _kinds(version).get((group, api, document["kind"]))


def problems(document: Json, version: str) -> list[str]:
    """What a server of a version would refuse or drop."""
    name = schema_name(document, version)
    if name is None:
        return [f"no kind {document['kind']} in {version}"]
    found = _validator(name, version).iter_errors(document)
    return [f"{each.json_path}: {each.message}" for each in found]


def without_unknown(value: Any, schema: Json, version: str) -> Any:
    """A value less the fields that its schema doesn't name, as a server keeps it."""
    if "$ref" in schema:
        schema = definitions(version)[schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        items = schema.get("items", {})
        return [without_unknown(each, items, version) for each in value]
    properties = schema.get("properties")
    if isinstance(value, dict) and properties is not None:
        return {
            name: without_unknown(each, properties[name], version)
            for name, each in value.items()
            if name in properties
        }
    return value
