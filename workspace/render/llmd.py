"""Renders values for llm-d's modelservice chart (llm-d-modelservice 0.4), which starts and routes to the same pod.

The chart doesn't fetch the model: `mountModelVolume` stays false and the model is mounted as the same CSI volume. The
routing sidecar serves split prefill and decode, so it is off and the server keeps its port.
"""

from __future__ import annotations

from typing import Any, Final

from modelimage.errors import InvalidInput
from modelimage.source_uris import HUB
from workspace.hardware import Hardware
from workspace.node_demands import on_demand_share
from workspace.render import drain, names, spec_template
from workspace.render.cluster import NO_HARDWARE
from workspace.render.kubernetes import first_replicas
from workspace.render.pod import (
    affinity,
    container,
    gpu_resource,
    inference_pool_labels,
    pod_security,
    tolerations,
    volumes,
)
from workspace.render.release import Release, server_port
from workspace.render.standalone import gpu_node_terms, limited, memory_limit
from workspace.schema import Vendor, Workspace

Json = dict[str, Any]

# The chart's accelerator types. It has none for Neuron; its resource uses the type that adds
# nothing else.
_ACCELERATORS: Final = {
    Vendor.NVIDIA: "nvidia", Vendor.AMD: "amd", Vendor.INTEL: "intel-xe", Vendor.NEURON: "nvidia",
}  # fmt: skip
# Container fields that the chart's template handles itself; the others go through `extraConfig`.
_CHART_FIELDS: Final = (
    "name",
    "image",
    "command",
    "args",
    "env",
    "ports",
    "resources",
    "volumeMounts",
)


def render_llmd(workspace: Workspace, release: Release, hardware: Hardware = NO_HARDWARE) -> Json:
    """The values document. Its pods have the labels that `inference_pool` selects. Raises InvalidInput.

    The chart makes one kind of pod for each server.
    """
    spec, plan = workspace.spec, release.plan
    if plan.nodes > 1:
        raise InvalidInput(
            f"spec.resources.nodes is {plan.nodes}, and these values describe servers of one pod",
            hint="Render it for kubernetes; the InferencePool of --to llm-d-pool selects the leaders of its groups.",
        )
    if on_demand_share(spec.resources.provisioning, 1):
        raise InvalidInput(
            "the chart has one Deployment of servers, and onDemandMinimum needs two",
            hint="Leave onDemandMinimum out, or set spot to only or never.",
        )
    accepted = tolerations(spec.resources, gpus=plan.gpus)
    found = affinity(spec, release, gpu_node_terms(workspace, release, hardware))
    template = spec.template
    extra = {
        **spec_template.pod_fields(template),
        "automountServiceAccountToken": False,
        "securityContext": pod_security(template),
        **({"affinity": found} if found else {}),
        **_spread(workspace),
    }
    secret = spec.model.pull_secret
    account, annotations = template.service_account_name, template.annotations
    return {
        "fullnameOverride": workspace.name,
        **({"serviceAccountOverride": account} if account else {}),
        "modelArtifacts": {
            "name": plan.served_name,
            # Read only when the chart fetches the model itself.
            "uri": f"{HUB}{plan.served_name}",
            "labels": _chart_labels(workspace),
        },
        "accelerator": _accelerator(workspace, release),
        "routing": {"servicePort": server_port(workspace), "proxy": {"enabled": False}},
        "decode": {
            "create": True,
            "replicas": first_replicas(workspace),
            "parallelism": {"tensor": max(1, plan.gpus)},
            "terminationGracePeriodSeconds": drain.grace_seconds(spec.runtime.drain_seconds),
            **(
                {"nodeSelector": dict(spec.resources.node_selector)}
                if spec.resources.node_selector
                else {}
            ),
            **({"tolerations": accepted} if accepted else {}),
            **({"podAnnotations": dict(annotations)} if annotations else {}),
            "extraConfig": extra | ({"imagePullSecrets": [{"name": secret}]} if secret else {}),
            "containers": [_container(workspace, release)],
            "volumes": volumes(workspace, release),
        },
        "prefill": {"create": False},
    }


def _accelerator(workspace: Workspace, release: Release) -> Json:
    """The accelerator type and resource name: the chart's own list has no MIG slices and no Neuron."""
    if not release.plan.gpus:
        return {"type": "cpu"}
    requested = workspace.spec.resources
    kind = _ACCELERATORS[requested.vendor]
    return {"type": kind, "resources": {kind: gpu_resource(requested)}}


def inference_pool(workspace: Workspace) -> Json:
    """The pool that llm-d's gateway routes to (inference.networking.k8s.io/v1)."""
    metadata: Json = {"name": workspace.name, "labels": names.labels(workspace.name)}
    if workspace.metadata.namespace:
        metadata["namespace"] = workspace.metadata.namespace
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": _chart_labels(workspace)},
            "targetPorts": [{"number": server_port(workspace)}],
            # The port at which llm-d's endpoint picker takes the gateway's questions.
            "endpointPickerRef": {"name": f"{workspace.name}-epp", "port": {"number": 9002}},
        },
    }


def _spread(workspace: Workspace) -> Json:
    """The spec's constraints; the others are preferences that the chart's pods never had."""
    found = spec_template.spread_constraints(workspace.spec.template, (), _chart_labels(workspace))
    return {"topologySpreadConstraints": found} if found else {}


def _chart_labels(workspace: Workspace) -> dict[str, str]:
    """The pod labels without `llm-d.ai/role`, which the chart adds itself."""
    labels = inference_pool_labels(workspace.name)
    return {name: value for name, value in labels.items() if name != "llm-d.ai/role"}


def _container(workspace: Workspace, release: Release) -> Json:
    whole = container(workspace, release)
    whole["resources"] = limited(whole["resources"], memory_limit(workspace, release))
    own = {name: value for name, value in whole.items() if name in _CHART_FIELDS}
    extra = {name: value for name, value in whole.items() if name not in _CHART_FIELDS}
    return {**own, "modelCommand": "custom", "mountModelVolume": False, "extraConfig": extra}
