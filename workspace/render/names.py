"""Names, labels and annotations of a Workspace's objects, in one module because selectors must never change.

A Deployment's selector is immutable, so the labels of `selector` are part of the interface. Derived names contain `--`,
which no Workspace's name does: the objects of two Workspaces never have the same name.
"""

from __future__ import annotations

from typing import Final

from cache_agent.api.shared_names import CSI_DRIVER as CSI_DRIVER  # noqa: PLC0414 - one of these names too
from cache_agent.api.shared_names import DOMAIN as DOMAIN  # noqa: PLC0414 - one of these names too
from cache_agent.api.shared_names import READY as READY  # noqa: PLC0414 - one of these names too
from cache_agent.api.shared_names import node_label as node_label  # noqa: PLC0414 - one of these names too

MANAGER: Final = "weightyard"  # the field manager, and the value of managed-by

WORKSPACE: Final = f"{DOMAIN}/workspace"
UID: Final = f"{DOMAIN}/workspace-uid"  # a name may be given again, a uid never
ROLE: Final = f"{DOMAIN}/role"
REVISION: Final = f"{DOMAIN}/revision"
VARIANT: Final = f"{DOMAIN}/variant"
IMAGE: Final = f"{DOMAIN}/image"  # annotations: an image or a key is too long for a label
KEY: Final = f"{DOMAIN}/model-key"
SURGE: Final = f"{DOMAIN}/surge"  # the replicas that were asked for, and those beyond: 2+1
TRACK: Final = (
    f"{DOMAIN}/track"  # CANDIDATE on servers of a new version that runs beside the one that serves
)
CAPACITY: Final = f"{DOMAIN}/capacity"  # ON_DEMAND on servers that never run on spot capacity
ROUTED: Final = f"{DOMAIN}/routed"  # on Services behind a route: their EndpointSlices get it too
# What people ask of a rollout, as annotations of a Workspace: so that GitOps can ask it too.
PAUSE: Final = f"rollout.{DOMAIN}/pause"
RESUME: Final = f"rollout.{DOMAIN}/resume"
PROMOTE: Final = f"rollout.{DOMAIN}/promote"
ABORT: Final = f"rollout.{DOMAIN}/abort"
ROLLOUT_COMMANDS: Final = frozenset({PAUSE, RESUME, PROMOTE, ABORT})
CA: Final = f"{DOMAIN}/ca"
TRACE: Final = f"{DOMAIN}/traceparent"  # the trace of a version's starts
INTENT: Final = f"{DOMAIN}/intent"
GROUP_INDEX: Final = "leaderworkerset.sigs.k8s.io/group-index"  # on pods of a LeaderWorkerSet

SERVER: Final = "server"
WORKER: Final = "worker"  # computes for a server on another node
ACTIVATOR: Final = "activator"
PREWARM: Final = "prewarm"
BUILD: Final = "build"
CANDIDATE: Final = "candidate"
ON_DEMAND: Final = "on-demand"
SPARE: Final = "spare"  # of pods that never exist: an autoscaler makes room for them

SERVER_CONTAINER: Final = "server"
MODEL_DIR: Final = "/model"
ADAPTERS_DIR: Final = "/adapters"
PORT_NAME: Final = "http"


def server_service(workspace: str) -> str:
    """The Service that always selects the servers, whatever the Workspace's own Service selects."""
    return f"{workspace}--{SERVER}"


def activator(workspace: str) -> str:
    """The Deployment and the NetworkPolicy of the Workspace's activator."""
    return f"{workspace}--{ACTIVATOR}"


def group(workspace: str) -> str:
    """The LeaderWorkerSet of servers on several nodes, and the NetworkPolicy between their pods.

    Not the Workspace's name: a LeaderWorkerSet makes a headless Service of its own.
    """
    return f"{workspace}--group"


def candidate(workspace: str) -> str:
    """The Deployment of a new version's servers while they run beside those of the version that serves.

    Also the Service, or the InferencePool, by which a route reaches a new version.
    """
    return f"{workspace}--{CANDIDATE}"


def on_demand(deployment: str) -> str:
    """The Deployment of those servers of another that never run on spot capacity."""
    return f"{deployment}{'-' if '--' in deployment else '--'}{ON_DEMAND}"


def with_on_demand(deployment: str) -> tuple[str, str]:
    """The two Deployments that together have one version's servers: the one named, and that beside it."""
    return deployment, on_demand(deployment)


def spares(workspace: str) -> str:
    """The CapacityBuffer and the PodTemplate of the Workspace's spare nodes."""
    return f"{workspace}--spares"


def build_policy(workspace: str) -> str:
    """The NetworkPolicy of the Workspace's builds."""
    return f"{workspace}--{BUILD}"


def selector(workspace: str, role: str, uid: str | None = None) -> dict[str, str]:
    """Labels that select the pods of one role; with the Workspace's uid, never those of an earlier one of its name."""
    return {WORKSPACE: workspace, ROLE: role, **({UID: uid} if uid else {})}


def labels(workspace: str, role: str | None = None, uid: str | None = None) -> dict[str, str]:
    """Labels of every object; with a role, they include its selector."""
    common = {
        "app.kubernetes.io/name": workspace,
        "app.kubernetes.io/part-of": "weightyard",
        "app.kubernetes.io/managed-by": MANAGER,
        WORKSPACE: workspace,
    }
    return common if role is None else {**common, **selector(workspace, role, uid)}


def scraped(path: str, port: int) -> dict[str, str]:
    """Annotations by which a Prometheus finds a pod's metrics page."""
    # A convention of many Prometheus configurations, and no part of Prometheus.
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/path": path,
        "prometheus.io/port": str(port),
    }
