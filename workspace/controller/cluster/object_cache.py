"""Caches watched objects compactly: a Workspace's objects as compressed JSON, nodes as a few facts.

A thousand Workspaces have ten thousand objects, which would take hundreds of megabytes as dictionaries. Memory only;
independent of where events come from.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from cache_agent.api.publish_record import PublishRecord
from modelimage.digest import Digest
from workspace.controller.observation.interruptions import Interruptions
from workspace.controller.observation.mount_news import MountEvents, MountNews
from workspace.controller.observation.node_labels import held_labels, parse_node_cache
from workspace.controller.observation.node_news import NodeAnswers, NodeNews
from workspace.controller.observation.nodes import KubeNode
from workspace.controller.observation.objects import SHARED_KINDS, has_ended, node_of
from workspace.controller.observation.pod_news import PublishedVolumes
from workspace.controller.observation.revisions import has_version
from workspace.render import names

Json = dict[str, Any]
Key = tuple[str, str]  # namespace and name of a Workspace
# Fast compression: objects are packed at every event.
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class _Report:
    """The facts read from a NodeCache: labels of the models held, and the read rate in bytes a second."""

    held: frozenset[str]
    rate: float | None


@dataclass(slots=True)
class WatchCache:
    """Watched objects by Workspace. `put` and `drop` return the Workspaces affected by a change."""

    _documents: dict[Key, bytes] = field(default_factory=dict)
    _objects: dict[Key, dict[tuple[str, str], bytes]] = field(default_factory=dict)
    _labels: dict[Key, set[str]] = field(
        default_factory=dict
    )  # of the models of a Workspace's versions
    _servers: dict[tuple[str, str], str] = field(default_factory=dict)  # their nodes
    _nodes: dict[str, KubeNode] = field(default_factory=dict)
    _reports: dict[str, _Report] = field(default_factory=dict)  # by node
    _versions: dict[tuple[str, str, str], int] = field(default_factory=dict)
    _mounts: MountEvents = field(default_factory=MountEvents)
    _answers: NodeAnswers = field(default_factory=NodeAnswers)
    _published: PublishedVolumes = field(default_factory=PublishedVolumes)
    _interrupted: Interruptions = field(default_factory=Interruptions)
    _told: Counter[Key] = field(default_factory=Counter)  # news of pods' volumes

    def put(self, document: Json) -> set[Key]:
        """Stores the state of an object, unless a newer one is known."""
        kind, name = document["kind"], document["metadata"]["name"]
        # Events are ordered by the times that they tell, and too many to remember their versions.
        if kind != "Event" and self._is_older(document):
            return set()
        shared = {
            "Event": self._put_event,
            "Node": self._put_kube_node,
            "NodeCache": self._put_node_cache,
        }
        if kind in shared:
            return shared[kind](document)
        if kind == "Workspace":
            key = (document["metadata"]["namespace"], name)
            return _changed(self._documents, key, _pack(document), {key})
        found = self._key_of(document)
        if found is None:
            return set()
        if kind == "Pod":
            self._put_server(document)
        if kind == "ControllerRevision":
            # Those of the StatefulSets of groups have the labels of their pods, ours among them.
            if not has_version(document):
                return set()
            label = names.node_label(Digest.parse(document["data"]["key"]))
            self._labels.setdefault(found, set()).add(label)
        return _changed(self._objects.setdefault(found, {}), (kind, name), _pack(document), {found})

    def drop(self, document: Json) -> set[Key]:
        """Removes a deleted object, unless a newer one of its name is known."""
        if self._is_older(document):
            return set()
        # Else the table would keep a version of every pod that ever ran.
        self._versions.pop(_identity(document), None)
        kind, name = document["kind"], document["metadata"]["name"]
        # Any Workspace may have chosen the node, so all are reconciled.
        if kind == "Node":
            return set(self._documents) if self._nodes.pop(name, None) else set()
        if kind == "NodeCache":
            return self._forget_node_cache(name)
        if kind == "Workspace":
            self._documents.pop((document["metadata"]["namespace"], name), None)
            self._told.pop((document["metadata"]["namespace"], name), None)
            self._labels.pop((document["metadata"]["namespace"], name), None)
            # No pass for it: the garbage collector deletes its objects, and each of
            # those brings one, which forgets it.
            return set()
        if kind == "Pod":
            metadata = document["metadata"]
            self._servers.pop((metadata.get("namespace", ""), name), None)
            for told in (self._mounts, self._answers, self._published):
                told.forget(metadata.get("namespace", ""), metadata.get("uid", ""))
        found = self._key_of(document)
        if found is None or self._objects.get(found, {}).pop((kind, name), None) is None:
            return set()
        if not self._objects[found]:
            del self._objects[found]
            # Versions go after their Workspace, and may change until then.
            self._labels.pop(found, None)
        return {found}

    def known(self, kind: str) -> dict[tuple[str, str], Json]:
        """The cached objects of a kind by namespace and name, with only the fields that `drop` needs."""
        # Rebuilt from keys: whole objects are packed, and unpacking thousands to drop one is slow.
        if kind in ("Node", "NodeCache"):
            held: Iterable[str] = self._nodes if kind == "Node" else self._reports
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

    def listed(self, kind: str) -> None:
        """Forgets the versions of a kind before its objects are listed.

        After a restoration from a backup they are lower than before, and everything would look older for ever.
        """
        for identity in [each for each in self._versions if each[0] == kind]:
            del self._versions[identity]

    def workspaces(self) -> list[Key]:
        return sorted(self._documents)

    def workspace(self, key: Key) -> Json | None:
        """The Workspace's document; None when it doesn't exist."""
        packed = self._documents.get(key)
        return None if packed is None else _unpack(packed)

    def stamp(self, key: Key) -> tuple[object, ...]:
        """Equal as long as nothing changes that is known of a Workspace, its objects and its pods' volumes; cheap."""
        packed = self._objects.get(key, {}).values()
        return (self._told.get(key, 0), self._documents.get(key), *packed)

    def objects(self, key: Key) -> tuple[Json, ...]:
        return tuple(_unpack(each) for each in self._objects.get(key, {}).values())

    def mounts(self, objects: Iterable[Json]) -> dict[str, MountNews]:
        """What Events tell of the pods among some objects, by uid."""
        places = _pods(objects)
        return {
            uid: news for space, uid in places if (news := self._mounts.of(space, uid)) is not None
        }

    def answers(self, objects: Iterable[Json]) -> dict[str, NodeNews]:
        """What autoscalers answered about the nodes of the pods among some objects, by uid."""
        places = _pods(objects)
        return {uid: news for space, uid in places if (news := self._answers.of(space, uid))}

    def published(self, objects: Iterable[Json]) -> dict[str, tuple[PublishRecord, ...]]:
        """The agents' records of the volumes of the pods among some objects, by uid."""
        places = _pods(objects)
        return {uid: told for space, uid in places if (told := self._published.of(space, uid))}

    def nodes(self) -> tuple[KubeNode, ...]:
        return tuple(self._nodes.values())

    def occupied(self) -> frozenset[str]:
        """The nodes on which any Workspace's server is."""
        return frozenset(self._servers.values())

    def _put_server(self, pod: Json) -> None:
        metadata, node = pod["metadata"], node_of(pod)
        place = (metadata["namespace"], metadata["name"])
        role = (metadata.get("labels") or {}).get(names.ROLE)
        is_server = role in (names.SERVER, names.WORKER)
        if is_server and node is not None and not has_ended(pod):
            self._servers[place] = node
        else:
            self._servers.pop(place, None)

    def _put_event(self, document: Json) -> set[Key]:
        """The Workspaces of what an Event is about, if that is known and the news is new."""
        node = self._nodes.get(self._interrupted.put(document) or "")
        if node is not None:
            return self._put_node(node)
        told = (each.put(document) for each in (self._mounts, self._answers, self._published))
        if not any([*told]):
            return set()
        space = document["metadata"].get("namespace", "")
        name = ("Pod", document["involvedObject"].get("name", ""))
        keys = {key for key, found in self._objects.items() if key[0] == space and name in found}
        # Of Workspaces that exist alone: pods may outlive theirs.
        self._told.update(keys & self._documents.keys())
        return keys

    def _put_kube_node(self, document: Json) -> set[Key]:
        return self._put_node(self._with_report(KubeNode.from_document(document)))

    def _put_node(self, node: KubeNode) -> set[Key]:
        """Stores a node. Unread fields, such as heartbeats, affect no Workspace.

        When only held models changed, those Workspaces are affected that serve them; otherwise all are.
        """
        # The Event and the Node's own sign come in either order, so each of the two looks for the other.
        node = node.taken_back() if node.uid in self._interrupted else node
        before = self._nodes.get(node.name)
        self._nodes[node.name] = node
        if before == node:
            return set()
        # Without this a fetch on one node would reconcile every Workspace of the cluster.
        if before is None or replace(before, held=node.held) != node:
            return set(self._documents)
        moved = before.held ^ node.held
        return {key for key, labels in self._labels.items() if labels & moved}

    def _put_node_cache(self, document: Json) -> set[Key]:
        name = document["metadata"]["name"]
        cache = parse_node_cache(document)
        if cache is None:
            return set()
        rate = cache.status.node.read_bytes_per_second
        self._reports[name] = _Report(frozenset(held_labels(cache)), rate)
        node = self._nodes.get(name)
        return self._put_node(self._with_report(node)) if node else set()

    def _forget_node_cache(self, name: str) -> set[Key]:
        """Clears a node's models: without an agent it can't mount any."""
        node = self._nodes.get(name)
        if self._reports.pop(name, None) is None or node is None:
            return set()
        return self._put_node(replace(node, held=frozenset(), read_rate=None))

    def _with_report(self, node: KubeNode) -> KubeNode:
        """The node with its NodeCache's facts, which take precedence over labels: those are written later."""
        report = self._reports.get(node.name)
        return replace(node, held=report.held, read_rate=report.rate) if report else node

    def _is_older(self, document: Json) -> bool:
        """Whether a newer state is known: events are delayed, and the result of our own write comes before its event.

        Resource versions of one kind are ordered numbers (KEP-5504); a server's that aren't are taken as they come.
        """
        version = str(document["metadata"].get("resourceVersion", ""))
        if not version.isdecimal():
            return False
        identity = _identity(document)
        if int(version) < self._versions.get(identity, 0):
            return True
        self._versions[identity] = int(version)
        return False

    @staticmethod
    def _key_of(document: Json) -> Key | None:
        metadata = document["metadata"]
        workspace = (metadata.get("labels") or {}).get(names.WORKSPACE)
        return (metadata["namespace"], workspace) if workspace else None


def _pods(objects: Iterable[Json]) -> list[tuple[str, str]]:
    """The namespaces and uids of the pods among some objects."""
    pods = [each["metadata"] for each in objects if each["kind"] == "Pod"]
    return [(pod.get("namespace", ""), str(pod.get("uid"))) for pod in pods]


def _identity(document: Json) -> tuple[str, str, str]:
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def _changed(objects: dict[Any, bytes], key: Any, packed: bytes, concerned: set[Key]) -> set[Key]:
    if objects.get(key) == packed:
        return set()
    objects[key] = packed
    return concerned


def _pack(document: Json) -> bytes:
    # These fields change on every write. Without them, writes that change nothing compare equal. But what others write
    # too is changed only if it still is what was read.
    dropped = (
        {"managedFields"}
        if document["kind"] in SHARED_KINDS
        else {"managedFields", "resourceVersion"}
    )
    metadata = {k: v for k, v in document["metadata"].items() if k not in dropped}
    return zlib.compress(json.dumps({**document, "metadata": metadata}).encode(), _LEVEL)


def _unpack(packed: bytes) -> Json:
    found: Json = json.loads(zlib.decompress(packed))
    return found
