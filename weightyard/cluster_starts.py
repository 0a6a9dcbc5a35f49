"""Why a Workspace's servers aren't up in a cluster: its Ready condition and its starts, through kubectl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from modelimage.errors import NotFound
from weightyard.cluster_nodes import node_facts
from weightyard.kubectl import Kubectl
from weightyard.node_answers import node_lines
from weightyard.start_text import start_lines
from weightyard.text import one_line
from workspace.controller.observation.objects import condition
from workspace.controller.status.startups import entries_of
from workspace.render import names
from workspace.startup import Startup

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkspaceStarts:
    """A Workspace of a cluster: whether it is ready, why not, and its starts, or those of one pod.

    `nodes`: what was asked of whoever makes nodes, and the answers, a line each.
    """

    name: str
    state: str
    reason: str
    message: str
    starts: tuple[Startup, ...]
    nodes: tuple[str, ...] = ()

    def text(self) -> str:
        """For people."""
        # A condition's message quotes others, who must not begin a line of ours.
        said = one_line(f"{self.name}: {self.state}: {self.reason}: {self.message}")
        starts = (line for each in self.starts for line in start_lines(each))
        return "\n".join([said, *map(one_line, self.nodes), *starts])

    def to_document(self) -> Json:
        """For programs."""
        return {
            "subject": self.name, "state": self.state, "reason": self.reason, "text": self.message,
            "startup": [each.to_document() for each in self.starts],
            **({"nodes": list(self.nodes)} if self.nodes else {}),
        }  # fmt: skip


def find_starts(cluster: Kubectl, subject: str, namespace: str | None) -> WorkspaceStarts:
    """A Workspace by NAME or NAMESPACE/NAME, or that of a pod. Raises NotFound and kubectl's errors."""
    space, _, name = subject.rpartition("/")
    space = space or namespace or cluster.namespace()
    try:
        # A Workspace first: a pod is asked for only where no Workspace has the name.
        return _of(cluster, _workspace(cluster, space, name))
    except NotFound:
        pod = cluster.get(f"/api/v1/namespaces/{quote(space)}/pods/{quote(name)}")
    owner = (pod["metadata"].get("labels") or {}).get(names.WORKSPACE)
    if owner is None:
        raise NotFound(f"the pod {space}/{name} belongs to no Workspace")
    return _of(cluster, _workspace(cluster, space, owner), pod=name)


def _workspace(cluster: Kubectl, space: str, name: str) -> Json:
    path = f"/apis/weightyard.dev/v1alpha1/namespaces/{quote(space)}/workspaces/{quote(name)}"
    return cluster.get(path)


def _of(cluster: Kubectl, document: Json, pod: str | None = None) -> WorkspaceStarts:
    metadata, ready = document["metadata"], condition(document, "Ready")
    return WorkspaceStarts(
        name=f"{metadata['namespace']}/{metadata['name']}",
        state="ready" if ready.get("status") == "True" else "not ready",
        reason=str(ready.get("reason", "Unknown")),
        message=str(ready.get("message", "the controller hasn't reported yet")),
        starts=tuple(each for each in entries_of(document) if pod in (None, each.pod)),
        nodes=tuple(node_lines(document, node_facts(cluster, document))),
    )
