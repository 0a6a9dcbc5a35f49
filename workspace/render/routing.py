"""What Kubernetes objects are made from beside the Workspace: facts of the cluster, and where requests go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from workspace.render import names
from workspace.render.build_settings import BuildSettings
from workspace.render.trace_settings import TraceSettings
from workspace.runtime_spec import DEFAULT_PORT
from workspace.schema import Workspace
from workspace.template_spec import DEFAULT_FIELDS

Json = dict[str, Any]

DEFAULT_IMAGE: Final = "ghcr.io/weightyard/weightyard-controller:0.1.0"
BUILDER_IMAGE: Final = "ghcr.io/weightyard/weightyard-builder:0.1.0"
AGENT_IMAGE: Final = "ghcr.io/weightyard/weightyard-agent:0.1.0"


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """Facts of the cluster: the namespace of Weightyard's system, and the images of its programs.

    `image` is the controller's; activators use it too. Pods of namespaces with the labels `metrics_from` may scrape the
    servers' metrics; without any only those of the Workspace's own. Pods of namespaces with the labels `gateways_from`
    are Gateways' proxies, which reach the servers of Workspaces with a route.
    """

    system_namespace: str = "weightyard"
    image: str = DEFAULT_IMAGE
    agent_image: str = AGENT_IMAGE
    builder_image: str = BUILDER_IMAGE
    quiet_seconds: int = 600  # added to a server's own startup limit in a rollout's deadline
    quotas: bool = True  # whether Workspaces may set the quota and the limits of their namespace
    template_fields: frozenset[str] = DEFAULT_FIELDS  # of spec.template, which Workspaces may set
    metrics_from: Mapping[str, str] = field(default_factory=dict)
    gateways_from: Mapping[str, str] = field(default_factory=dict)
    builds: BuildSettings = field(default_factory=BuildSettings)
    tracing: TraceSettings = field(default_factory=TraceSettings)


class ServerPart(Enum):
    """Servers that evictions count apart, each with its label: one is of the first part whose label it has.

    CANDIDATE: of a new version, beside those of the version that serves. ON_DEMAND: never on spot capacity.
    """

    CANDIDATE = (names.TRACK, names.CANDIDATE)
    ON_DEMAND = (names.CAPACITY, names.ON_DEMAND)
    REST = None


# The parts that there are, each with the servers that evictions must leave ready; None lets one at a time go.
Budgets = Mapping[ServerPart, int | None]


@dataclass(frozen=True, slots=True)
class Routing:
    """What decides where requests go: the pods behind the Workspace's Service, and the ports of its servers.

    `ports` are those of all versions that run, which differ from the spec's while one replaces the other. `uid` binds
    selectors to one Workspace; None where no controller has created it. `version` is the id of the version that alone
    gets requests. `nodes` are those of each server of the version to run; `workers` tells that some server runs on
    several.
    """

    role: str = names.SERVER
    ports: tuple[int, ...] = (DEFAULT_PORT,)
    uid: str | None = None
    budgets: Budgets = field(default_factory=lambda: {ServerPart.REST: None})
    version: str | None = None
    nodes: int = 1
    workers: bool = False


DIRECT: Final = Routing()


def meta(workspace: Workspace, name: str, role: str | None = None, uid: str | None = None) -> Json:
    """Metadata of an object in the Workspace's namespace."""
    where = {"namespace": workspace.metadata.namespace} if workspace.metadata.namespace else {}
    return {"name": name, **where, "labels": names.labels(workspace.name, role, uid)}


def selected(workspace: Workspace, role: str, routing: Routing) -> dict[str, str]:
    return names.selector(workspace.name, role, routing.uid)
