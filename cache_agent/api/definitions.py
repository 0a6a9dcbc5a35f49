"""The CustomResourceDefinitions of CachedModel and NodeCache, built from their pydantic models.

Run `python -m cache_agent.api.definitions cachedmodels` (or `nodecaches`) to print one.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import yaml

from cache_agent.api import cached_model, node_cache
from cache_agent.api.crd_schema import (
    LABEL_KEYS,
    REGISTRY_IMAGE,
    CustomResource,
    Rules,
    at,
    definition,
    keyed,
    model_schema,
)

Json = dict[str, Any]

# Repeats the checks that `Spec` and `Window` make in code, so that `kubectl apply` refuses the same documents.
CACHED_MODEL_RULES: Final[Rules] = {
    ("image",): REGISTRY_IMAGE,
    ("nodeSelector",): (LABEL_KEYS,),
    ("window",): (("self.start != self.end", "start and end must differ"),),
}

_CACHED_MODEL_COLUMNS: Final = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 0),
    ("Nodes", "string", ".status.held", 0),
    ("Size", "string", ".status.size", 0),
    ("Progress", "string", ".status.progress", 0),
    ("Left", "string", ".status.timeLeft", 0),
    ("Tier", "string", ".spec.tier", 1),
    ("Pinned", "boolean", ".spec.pin", 1),
    ("Priority", "integer", ".spec.priority", 1),
    ("Verified", "date", ".status.verifiedAt", 1),
    ("Image", "string", ".spec.image", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)
_NODE_CACHE_COLUMNS: Final = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Desired", "string", ".status.held", 0),
    ("Pinned", "string", '.status.conditions[?(@.type=="PinnedReady")].status', 0),
    ("Used", "string", ".status.space.usedShown", 0),
    ("Free", "string", ".status.space.freeShown", 0),
    ("Agent", "string", ".status.node.agentVersion", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def cached_model_definition() -> Json:
    """The CustomResourceDefinition of CachedModel."""
    spec = model_schema(cached_model.Spec, CACHED_MODEL_RULES)
    # A set, because `Window` refuses a day that is listed twice.
    at(spec, ("window", "days"))["x-kubernetes-list-type"] = "set"
    status = model_schema(cached_model.Status)
    _type_conditions(status, cached_model.CONDITIONS)
    keyed(status, ("failures",), "node")
    return definition(
        CustomResource(
            kind=cached_model.KIND,
            plural=cached_model.PLURAL,
            singular="cachedmodel",
            short_names=("cmodel",),
            scope="Cluster",
            description="A model that nodes should hold: its image, its nodes and its tier.",
            spec=spec,
            status=status,
            columns=_CACHED_MODEL_COLUMNS,
        )
    )


def node_cache_definition() -> Json:
    """The CustomResourceDefinition of NodeCache."""
    spec = model_schema(
        node_cache.NodeCacheSpec, {(): (("self == oldSelf", "a NodeCache's node can't change"),)}
    )
    status = model_schema(node_cache.NodeCacheStatus)
    _type_conditions(status, node_cache.CONDITIONS)
    keyed(status, ("desired",), "name")
    keyed(status, ("models",), "key")
    return definition(
        CustomResource(
            kind=node_cache.KIND,
            plural=node_cache.PLURAL,
            singular="nodecache",
            short_names=("ncache",),
            scope="Cluster",
            description="A node's cached models and its progress with the desired ones. Only its agent writes it.",
            spec=spec,
            status=status,
            columns=_NODE_CACHE_COLUMNS,
            rules=(("self.metadata.name == self.spec.node", "a NodeCache has its node's name"),),
        )
    )


DEFINITIONS: Final = {
    cached_model.PLURAL: cached_model_definition,
    node_cache.PLURAL: node_cache_definition,
}


def to_yaml(plural: str) -> str:
    """The definition as YAML, as in the chart."""
    return yaml.safe_dump(DEFINITIONS[plural](), sort_keys=False, width=120)


def _type_conditions(status: Json, types: tuple[str, ...]) -> None:
    keyed(status, ("conditions",), "type")
    at(status, ("conditions", "[]", "type"))["enum"] = list(types)


if __name__ == "__main__":
    sys.stdout.write(to_yaml(sys.argv[1]))
