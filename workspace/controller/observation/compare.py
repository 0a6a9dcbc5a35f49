"""Decides whether the API server already holds the desired object, so that nothing is written in a steady state.

Defaults added by the server and fields of other managers don't count. Fields that we no longer want are detected by a
hash of our whole document, kept in an annotation. Lists that the server merges by key may contain others' items; all
other lists are compared whole.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from workspace.render import names

Json = dict[str, Any]

# Field -> keys that identify its items (`x-kubernetes-list-map-keys` of the built-in types).
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
    """The document with its own hash as an annotation."""
    metadata = document["metadata"]
    annotations = {**metadata.get("annotations", {}), names.INTENT: intent(document)}
    return {**document, "metadata": {**metadata, "annotations": annotations}}


def intent(document: Json) -> str:
    """A hash of the desired object without the number of replicas, which an autoscaler may change."""
    spec = document.get("spec")
    if isinstance(spec, dict) and "replicas" in spec:
        spec = {name: value for name, value in spec.items() if name != "replicas"}
        document = {**document, "spec": spec}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def holds(actual: Any, wanted: Any, field: str = "") -> bool:
    """Whether `actual` contains everything in `wanted`."""
    # The server drops empty fields, so an empty value equals a missing one.
    if wanted in _EMPTY:
        # An empty dict that was filled with the server's defaults, such as an
        # emptyDir's, is no difference either.
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
    # Items that others added, such as a sidecar's container, aren't a difference: the server merges these lists by key.
    by_key = {tuple(each.get(key) for key in keys): each for each in actual}
    return all(holds(by_key.get(tuple(each.get(key) for key in keys)), each) for each in wanted)
