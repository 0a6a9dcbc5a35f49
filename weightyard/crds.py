"""The CustomResourceDefinitions of all packages, in this version."""

from __future__ import annotations

from typing import Any

from cache_agent.api.definitions import cached_model_definition, node_cache_definition
from workspace import crd

Json = dict[str, Any]


def definitions() -> dict[str, Json]:
    """The CustomResourceDefinitions by name."""
    found = (crd.definition(), cached_model_definition(), node_cache_definition())
    return {each["metadata"]["name"]: each for each in found}
