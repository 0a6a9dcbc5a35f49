"""Whether the server already holds what is wanted, so that nothing is written at rest.

The server adds defaults and others add fields of their own: those don't count. What we no longer want is noticed by
the hash of our whole intent, which is kept in an annotation. Lists that the server merges by a key may hold
items of others; all other lists are compared whole.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from workspace.render import names

Json = dict[str, Any]

# Field -> the members that tell its items apart (`x-kubernetes-list-map-keys` of the built-in types).
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "imagePullSecrets": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "ownerReferences": ("uid",),
}
_EMPTY: Final[tuple[Any, ...]] = (None, "", [], {})


def with_intent(document: Json) -> Json:
    """The document with the hash of itself as an annotation."""
    metadata = document["metadata"]
    annotations = {**metadata.get("annotations", {}), names.INTENT: intent(document)}
    return {**document, "metadata": {**metadata, "annotations": annotations}}


def intent(document: Json) -> str:
    """A hash of what is wanted, but for the number of replicas, which may be another's to change."""
    spec = document.get("spec")
    if isinstance(spec, dict) and "replicas" in spec:
        spec = {name: value for name, value in spec.items() if name != "replicas"}
        document = {**document, "spec": spec}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def holds(actual: Any, wanted: Any, field: str = "") -> bool:
    """Whether everything wanted stands in what is there."""
    if wanted in _EMPTY:
        return True if actual in _EMPTY else isinstance(actual, dict)
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(
            holds(actual.get(name), value, name) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(actual, list) and _holds_list(actual, wanted, field)
    return bool(actual == wanted)


def _holds_list(actual: list[Any], wanted: list[Any], field: str) -> bool:
    keys = _KEYS.get(field)
    if keys is None:
        return len(actual) == len(wanted) and all(
            holds(a, w) for a, w in zip(actual, wanted, strict=True)
        )
    by_key = {tuple(each.get(key) for key in keys): each for each in actual}
    return all(holds(by_key.get(tuple(each.get(key) for key in keys)), each) for each in wanted)
