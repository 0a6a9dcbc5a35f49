"""The CustomResourceDefinitions that this version has, of every package that has one."""

from __future__ import annotations

from typing import Any

from cache_agent.api.definitions import cached_model_definition, node_cache_definition
from workspace import crd

Json = dict[str, Any]


def definitions() -> dict[str, Json]:
    """Each CustomResourceDefinition by its name."""
    found = (crd.definition(), cached_model_definition(), node_cache_definition())
    return {each["metadata"]["name"]: each for each in found}
