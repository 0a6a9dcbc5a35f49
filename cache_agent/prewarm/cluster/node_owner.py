"""Objects that belong to this node's Node: the API server deletes them with it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cache_agent.api.kube.kube_client import KubeClient
from modelimage.errors import NotFound

Json = dict[str, Any]


@dataclass
class NodeOwner:
    """The Node named `node`. An agent outside the cluster has none."""

    api: KubeClient
    node: str
    _seen: bool = False

    async def metadata(self) -> Json:
        """The metadata that makes an object the Node's; empty where there never was such a Node.

        Raises NotFound when the Node is gone, for ever or until kubelet registers it again: nobody would delete the
        object.
        """
        found: Json | None = None
        with suppress(NotFound):
            found = await self.api.get(f"/api/v1/nodes/{self.node}")
        if found is None and self._seen:
            raise NotFound(f"the Node {self.node} was deleted")
        if found is None:
            return {}
        self._seen = True
        uid = found["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid}
        return {"ownerReferences": [owner]}
