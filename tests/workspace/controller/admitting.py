"""What a server does to a request's document before it stores it: places it, names it, holds it against its schema."""

from __future__ import annotations

import itertools
from typing import Any

from tests.workspace import openapi
from tests.workspace.controller.fakeapi import OWN_SCHEMAS, VERSION, FakeApi, merge, merge_json
from tests.workspace.served import server_accepts

Json = dict[str, Any]
# Kinds without a status of their own: what is written to it counts as a part of the object.
_WHOLE = {"Event", "Lease", "Secret", "ServiceAccount", "ControllerRevision", "LimitRange"}
_numbers = itertools.count(1)


class Invalid(Exception):
    """A document that the server refuses. `status` is its answer's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def placed(document: Json, kind: str, namespace: str) -> Json:
    """The document with the namespace of the request's path, and a name if it asks for one."""
    metadata = dict(document.get("metadata") or {})
    if "name" not in metadata and metadata.get("generateName"):
        metadata["name"] = f"{metadata['generateName']}{next(_numbers):05}"
    if namespace:
        metadata["namespace"] = namespace
    return {"kind": kind, **document, "metadata": metadata}


def of_part(patch: Json, kind: str, *, status: bool) -> Json:
    """What a write to an object, or to its status, may change."""
    if status:
        return {name: each for name, each in patch.items() if name not in ("spec", "data")}
    return (
        patch
        if kind in _WHOLE
        else {name: each for name, each in patch.items() if name != "status"}
    )


def check_applied(document: Json, api: FakeApi) -> None:
    """Raises Invalid for fields that the schema doesn't have, and for what the result would break."""
    found = undeclared(document)
    if found:
        raise Invalid(
            500, f"failed to create typed patch object: {found}: field not declared in schema"
        )
    live = api.objects.get(api.key(document))
    if live is not None or "status" not in document:
        check(merge(live or {}, document))


def check_merged(kind: str, namespace: str, name: str, patch: Json, api: FakeApi) -> None:
    """Raises Invalid for a patch whose result breaks its schema."""
    check(merge_json(api.get(kind, namespace, name), patch))


def check(document: Json) -> None:
    """Raises Invalid for a document of our own kinds that breaks its schema or its rules."""
    schema = OWN_SCHEMAS.get(document["kind"])
    known = openapi.without_unknown(document, schema, VERSION) if schema else {}
    if schema and not server_accepts(schema, known):
        raise Invalid(422, f"{document['kind']} {document['metadata']['name']} is invalid")


def undeclared(document: Json) -> str:
    """The path of the first field that the document's schema doesn't have; empty without one, or without a schema."""
    name, own = openapi.schema_name(document, VERSION), OWN_SCHEMAS.get(document["kind"])
    schema = {"$ref": f"#/$defs/{name}"} if name else own
    if schema is None:
        return ""
    body = {
        key: each for key, each in document.items() if key not in ("apiVersion", "kind", "metadata")
    }
    return _missing(body, openapi.without_unknown(body, schema, VERSION), "")


def _missing(value: Any, kept: Any, path: str) -> str:
    if isinstance(value, dict) and isinstance(kept, dict):
        fields = (
            _missing(each, kept[name], f"{path}.{name}") if name in kept else f"{path}.{name}"
            for name, each in value.items()
        )
        return next(filter(None, fields), "")
    if isinstance(value, list) and isinstance(kept, list):
        pairs = zip(value, kept, strict=True)
        return next((f for each, other in pairs if (f := _missing(each, other, path))), "")
    return ""
