"""Input and output types of reconcile(). Values only.

Objects stay plain documents as the API server returns them; facts that are read often have names here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cache_agent.api.publish_record import PublishRecord
from modelimage.errors import WeightyardError
from workspace.analysis import AnalysisResult
from workspace.controller.observation.mount_news import MountNews
from workspace.controller.observation.node_news import NodeNews
from workspace.controller.observation.nodes import KubeNode
from workspace.controller.observation.objects import has_ended, has_labels, is_owned
from workspace.controller.observation.pod_start import StartNews
from workspace.probes.verdicts import ProbeResult
from workspace.render import names
from workspace.render.release import ResolvedImages
from workspace.render.routing import SystemSettings
from workspace.rollout_status import RolloutStatus

Json = dict[str, Any]

KEDA_GROUP: Final = "keda.sh"
GATEWAY_GROUP: Final = "gateway.networking.k8s.io"
POOL_GROUP: Final = "inference.networking.k8s.io"
LWS_GROUP: Final = "leaderworkerset.x-k8s.io"


@dataclass(frozen=True, slots=True)
class Reference:
    """One object in the Workspace's namespace."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything known at one moment.

    `objects` are those of the namespace with the Workspace's label or with a name that it needs, pods included.
    `resolved` is the registry's result or error; None before a request. `wanted` is the autoscaler's number of
    replicas; None without autoscaling or before its first result. `unread`: why it can't read a server's load. `now` is
    RFC 3339. `refused` are writes of this pass that the API server refused, in its words. `mounts` is what Events tell
    of pods that wait for volumes, by uid; `answers` what autoscalers say of those that wait for a node; `published` the
    agents' records of pods' volumes, and `starts` what else is known of servers' starts. `analysis` compares a new
    version with the one that serves; `probes` are its answers. `idle` is the version whose servers have finished their
    requests, of one that gets none any more. `running` is how many requests each server has, by the pod's uid, where
    the built-in autoscaler measures them. `occupied` are the nodes with any Workspace's server.
    """

    document: Json
    objects: tuple[Json, ...]
    nodes: tuple[KubeNode, ...]
    now: str
    environment: SystemSettings
    resolved: ResolvedImages | WeightyardError | None = None
    wanted: int | None = None
    unread: WeightyardError | None = None
    groups: frozenset[str] = frozenset()
    refused: tuple[str, ...] = ()
    mounts: Mapping[str, MountNews] = field(default_factory=dict)
    answers: Mapping[str, NodeNews] = field(default_factory=dict)
    published: Mapping[str, tuple[PublishRecord, ...]] = field(default_factory=dict)
    starts: Mapping[str, StartNews] = field(default_factory=dict)
    analysis: AnalysisResult | None = None
    idle: str = ""
    probes: ProbeResult | None = None
    running: Mapping[str, float] = field(default_factory=dict)
    occupied: frozenset[str] = frozenset()

    @property
    def uid(self) -> str:
        return str(self.document["metadata"]["uid"])

    def find(self, kind: str, name: str) -> Json | None:
        """One object; None when it doesn't exist."""
        for each in self.objects:
            if each["kind"] == kind and each["metadata"]["name"] == name:
                return each
        return None

    @property
    def bound_uid(self) -> str | None:
        """The uid by which pods are selected; None for a Deployment whose selector, which can't change, has none."""
        deployment = self.find("Deployment", self.document["metadata"]["name"])
        if deployment is None or not is_owned(deployment, self.uid):
            return self.uid
        selected: Json = deployment["spec"]["selector"]["matchLabels"]
        return self.uid if names.UID in selected else None

    def pods(self, role: str, *, ended: bool = False) -> list[Json]:
        """The Workspace's own pods of a role, except those being deleted, by name.

        Servers that ended stay in the API server for a while beside those that replace them: only `ended` returns them.
        """
        wanted = names.selector(self.document["metadata"]["name"], role, self.bound_uid)
        found = [
            # Pre-warm pods end once the model is there: one that has ended is the answer, not a remnant.
            each
            for each in self.objects
            if each["kind"] == "Pod"
            and has_labels(each, wanted)
            and "deletionTimestamp" not in each["metadata"]
            and (role == names.PREWARM or has_ended(each) == ended)
        ]
        # In one order, whatever that of the watch: a status that names the first
        # pod must not change without news.
        return sorted(found, key=lambda each: str(each["metadata"]["name"]))


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of one object as our field manager."""

    document: Json


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes one object if it still has the uid that was seen."""

    reference: Reference
    uid: str


@dataclass(frozen=True, slots=True)
class Annotate:
    """Sets annotations of an object that others made, if it still has the uid that was seen; None removes one."""

    reference: Reference
    uid: str
    annotations: Mapping[str, str | None]


Action = Apply | Delete | Annotate


@dataclass(frozen=True, slots=True)
class Decision:
    """The actions to take. `status` None leaves it unchanged; `ask_registry` requests `resolved` and another call.

    `rollout` is that of a new version; `draining` the version whose servers stay until they have no requests. In
    `wake_after` seconds time alone changes what is to be done; None if it doesn't. `trace` is the `traceparent` of the
    version that is worked on; empty if it isn't traced.
    """

    actions: tuple[Action, ...] = ()
    status: Json | None = None
    ask_registry: bool = False
    rollout: RolloutStatus | None = None
    draining: str | None = None
    wake_after: float | None = None
    trace: str = ""


def reference(document: Json) -> Reference:
    return Reference(str(document["kind"]), str(document["metadata"]["name"]))
