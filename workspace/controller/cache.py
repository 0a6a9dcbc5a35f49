"""What the watches told, kept small: objects of Workspaces as compressed JSON, nodes as the few facts that are read.

A thousand Workspaces have ten thousand objects; as dictionaries they would take hundreds of megabytes. Memory only;
knows nothing of where events come from.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any

from workspace.controller.nodes import Node
from workspace.render import names

Json = dict[str, Any]
Key = tuple[str, str]  # namespace and name of a Workspace
_LEVEL = 1


@dataclass(slots=True)
class Cache:
    """Objects by Workspace. `put` and `drop` return the Workspaces that a change concerns."""

    _documents: dict[Key, bytes] = field(default_factory=dict)
    _objects: dict[Key, dict[tuple[str, str], bytes]] = field(default_factory=dict)
    _nodes: dict[str, Node] = field(default_factory=dict)

    def put(self, document: Json) -> set[Key]:
        """Take in the newest state of an object."""
        kind, name = document["kind"], document["metadata"]["name"]
        if kind == "Node":
            return self._put_node(Node.of(document))
        if kind == "Workspace":
            key = (document["metadata"]["namespace"], name)
            return _changed(self._documents, key, _pack(document), {key})
        found = self._key_of(document)
        if found is None:
            return set()
        return _changed(self._objects.setdefault(found, {}), (kind, name), _pack(document), {found})

    def drop(self, document: Json) -> set[Key]:
        """Forget an object that was deleted."""
        kind, name = document["kind"], document["metadata"]["name"]
        if kind == "Node":
            return set(self._documents) if self._nodes.pop(name, None) else set()
        if kind == "Workspace":
            self._documents.pop((document["metadata"]["namespace"], name), None)
            return set()
        found = self._key_of(document)
        if found is None or self._objects.get(found, {}).pop((kind, name), None) is None:
            return set()
        if not self._objects[found]:
            del self._objects[found]
        return {found}

    def workspaces(self) -> list[Key]:
        return sorted(self._documents)

    def workspace(self, key: Key) -> Json | None:
        """The Workspace's document; None when it was deleted."""
        packed = self._documents.get(key)
        return None if packed is None else _unpack(packed)

    def objects(self, key: Key) -> tuple[Json, ...]:
        return tuple(_unpack(each) for each in self._objects.get(key, {}).values())

    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._nodes.values())

    def _put_node(self, node: Node) -> set[Key]:
        """A node concerns everyone, but only where something that is read changed: heartbeats don't."""
        if self._nodes.get(node.name) == node:
            return set()
        self._nodes[node.name] = node
        return set(self._documents)

    @staticmethod
    def _key_of(document: Json) -> Key | None:
        metadata = document["metadata"]
        workspace = (metadata.get("labels") or {}).get(names.WORKSPACE)
        return (metadata["namespace"], workspace) if workspace else None


def _changed(place: dict[Any, bytes], key: Any, packed: bytes, concerned: set[Key]) -> set[Key]:
    if place.get(key) == packed:
        return set()
    place[key] = packed
    return concerned


def _pack(document: Json) -> bytes:
    metadata = {
        k: v
        for k, v in document["metadata"].items()
        if k not in ("managedFields", "resourceVersion")
    }
    return zlib.compress(json.dumps({**document, "metadata": metadata}).encode(), _LEVEL)


def _unpack(packed: bytes) -> Json:
    found: Json = json.loads(zlib.decompress(packed))
    return found
