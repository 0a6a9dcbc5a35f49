"""What the watches told, kept small: objects of Workspaces as compressed JSON, nodes as the few facts that are read.

A thousand Workspaces have ten thousand objects; as dictionaries they would take hundreds of megabytes. Memory only;
knows nothing of where events come from.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from modelimage.digest import Digest
from workspace.controller.node_marks import held_labels, parse_node_cache
from workspace.controller.nodes import Node
from workspace.render import names

Json = dict[str, Any]
Key = tuple[str, str]  # namespace and name of a Workspace
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class _Told:
    """What is read of a NodeCache: labels of the models held, and bytes a second."""

    held: frozenset[str]
    rate: float | None


@dataclass(slots=True)
class Cache:
    """Objects by Workspace. `put` and `drop` return the Workspaces that a change concerns."""

    _documents: dict[Key, bytes] = field(default_factory=dict)
    _objects: dict[Key, dict[tuple[str, str], bytes]] = field(default_factory=dict)
    _labels: dict[Key, set[str]] = field(
        default_factory=dict
    )  # of the models of a Workspace's versions
    _nodes: dict[str, Node] = field(default_factory=dict)
    _told: dict[str, _Told] = field(default_factory=dict)  # by node

    def put(self, document: Json) -> set[Key]:
        """Take in the newest state of an object."""
        kind, name = document["kind"], document["metadata"]["name"]
        if kind == "Node":
            return self._put_node(self._as_told(Node.of(document)))
        if kind == "NodeCache":
            return self._put_node_cache(name, document)
        if kind == "Workspace":
            key = (document["metadata"]["namespace"], name)
            return _changed(self._documents, key, _pack(document), {key})
        found = self._key_of(document)
        if found is None:
            return set()
        if kind == "ControllerRevision":
            label = names.node_label(Digest.parse(document["data"]["key"]))
            self._labels.setdefault(found, set()).add(label)
        return _changed(self._objects.setdefault(found, {}), (kind, name), _pack(document), {found})

    def drop(self, document: Json) -> set[Key]:
        """Forget an object that was deleted."""
        kind, name = document["kind"], document["metadata"]["name"]
        if kind == "Node":
            return set(self._documents) if self._nodes.pop(name, None) else set()
        if kind == "NodeCache":
            return self._forget_node_cache(name)
        if kind == "Workspace":
            self._documents.pop((document["metadata"]["namespace"], name), None)
            self._labels.pop((document["metadata"]["namespace"], name), None)
            return set()
        found = self._key_of(document)
        if found is None or self._objects.get(found, {}).pop((kind, name), None) is None:
            return set()
        if not self._objects[found]:
            del self._objects[found]
        return {found}

    def known(self, kind: str) -> dict[tuple[str, str], Json]:
        """The objects of a kind that are kept, by namespace and name: as much of each as `drop` needs."""
        if kind in ("Node", "NodeCache"):
            held: Iterable[str] = self._nodes if kind == "Node" else self._told
            return {("", name): {"kind": kind, "metadata": {"name": name}} for name in held}
        if kind == "Workspace":
            found = {key: ("", key[1]) for key in self._documents}
        else:
            found = {
                (key[0], name): (key[1], name)
                for key, objects in self._objects.items()
                for (each, name) in objects
                if each == kind
            }
        return {
            (space, name): {
                "kind": kind,
                "metadata": {
                    "namespace": space, "name": name, "labels": {names.WORKSPACE: workspace},
                },
            }
            for (space, name), (workspace, _) in found.items()
        }  # fmt: skip

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
        """A node concerns everyone, but only where something that is read changed: heartbeats don't. Where only
        models came or went, it concerns those that serve them."""
        before = self._nodes.get(node.name)
        self._nodes[node.name] = node
        if before == node:
            return set()
        if before is None or replace(before, held=node.held) != node:
            return set(self._documents)
        moved = before.held ^ node.held
        return {key for key, labels in self._labels.items() if labels & moved}

    def _put_node_cache(self, name: str, document: Json) -> set[Key]:
        cache = parse_node_cache(document)
        if cache is None:
            return set()
        rate = cache.status.node.read_bytes_per_second
        self._told[name] = _Told(frozenset(held_labels(cache)), rate)
        node = self._nodes.get(name)
        return self._put_node(self._as_told(node)) if node else set()

    def _forget_node_cache(self, name: str) -> set[Key]:
        """A node without an agent can mount nothing."""
        node = self._nodes.get(name)
        if self._told.pop(name, None) is None or node is None:
            return set()
        return self._put_node(replace(node, held=frozenset(), read_rate=None))

    def _as_told(self, node: Node) -> Node:
        """A node with what its NodeCache says; its labels come later, and from there."""
        told = self._told.get(node.name)
        return replace(node, held=told.held, read_rate=told.rate) if told else node

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
