"""Objects that belong to this node's Node: the API server deletes them with it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from cache_agent.api.kube.kube_client import KubeClient
from modelimage.errors import NotFound

Json = dict[str, Any]


async def owned_by_node(api: KubeClient, node: str) -> Json:
    """The metadata that makes an object the Node's. Empty where there is no such Node, as for an agent outside."""
    with suppress(NotFound):
        found = await api.get(f"/api/v1/nodes/{node}")
        owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": found["metadata"]["uid"]}
        return {"ownerReferences": [owner]}
    return {}
