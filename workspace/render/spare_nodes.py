"""Renders the CapacityBuffer (autoscaling.x-k8s.io) that has spare nodes made for a Workspace's next servers.

The Cluster Autoscaler and Karpenter make room for the buffer's pods, which never exist. Their shape is a PodTemplate of
ours and not the running servers', which autoscalers read only while there are some: spares matter most at 0 replicas.
It has what decides a node and nothing else. A spare's pod keeps off nodes with a server or another spare, so that a
chunk is a whole node; it doesn't ask for nodes that hold the model, as none that is yet to be made does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from workspace.node_demands import capacity_preferences, demanded_terms
from workspace.render import names
from workspace.render.pod import tolerations
from workspace.render.routing import meta
from workspace.render.spec_template import PLACING
from workspace.schema import Workspace

Json = dict[str, Any]

API: Final = "autoscaling.x-k8s.io/v1beta1"
KIND: Final = "CapacityBuffer"
# Fields of a server's pod that decide where it may run, beside those that are made anew here.
_KEPT: Final = ("nodeSelector", *PLACING)


def spare_nodes(workspace: Workspace, server: Mapping[str, Any], *, gpus: int) -> list[Json]:
    """The buffer and its template, for as many nodes as the spec asks for; none if it asks for no spares.

    `server` is the pod template of the version that the spares are for, which asks for `gpus` GPUs.
    """
    count = workspace.spec.resources.warm_spares
    if not count:
        return []
    name = names.spares(workspace.name)
    template = {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": meta(workspace, name),
        "template": {
            "metadata": {"labels": names.selector(workspace.name, names.SPARE)},
            "spec": _pod_spec(workspace, server["spec"], gpus),
        },
    }
    buffer = {
        "apiVersion": API,
        "kind": KIND,
        "metadata": meta(workspace, name),
        "spec": {"podTemplateRef": {"name": name}, "replicas": count},
    }
    return [template, buffer]


def _pod_spec(workspace: Workspace, server: Json, gpus: int) -> Json:
    accepted = tolerations(workspace.spec.resources, gpus=gpus)
    return {
        **{field: server[field] for field in _KEPT if field in server},
        **({"tolerations": accepted} if accepted else {}),
        "affinity": _affinity(workspace, gpus),
        "containers": [
            # The API server wants an image of every container, although nothing pulls this one.
            {name: each[name] for name in ("name", "image", "resources")}
            for each in server["containers"]
        ],
    }


def _affinity(workspace: Workspace, gpus: int) -> Json:
    resources = workspace.spec.resources
    nodes: Json = {}
    if terms := demanded_terms(resources, gpus=gpus):
        listed = [{"matchExpressions": term} for term in terms]
        nodes["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": listed}
    if preferred := capacity_preferences(resources.provisioning):
        nodes["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    others = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {
            "matchLabels": {names.WORKSPACE: workspace.name},
            "matchExpressions": [
                {"key": names.ROLE, "operator": "In", "values": [names.SERVER, names.SPARE]}
            ],
        },
    }
    return {
        **({"nodeAffinity": nodes} if nodes else {}),
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [others]},
    }
