"""The serving pod: a container with the plan's command line, the model as a read-only CSI volume, what the spec adds.

Meets the restricted pod security standard: no root, no capabilities, a read-only root, no host paths, no token. Only
fields of Kubernetes 1.27: an older server drops others, and the object would never match the desired one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from workspace.node_demands import (
    capacity_preferences,
    capacity_tolerations,
    demanded_terms,
    queue_label,
    zone_spread,
)
from workspace.node_terms import Term, both, is_in
from workspace.render import drain, names, spec_template
from workspace.render.containers import container_security, env_var
from workspace.render.quantities import canonical, total_bytes
from workspace.render.release import Release
from workspace.schema import Placement, Resources, Spec, Vendor, Workspace
from workspace.template_spec import NO_TEMPLATE, PodTemplate
from workspace.toleration import Toleration

Json = dict[str, Any]

RESOURCE_NAMES: Final = {
    Vendor.NVIDIA: "nvidia.com/gpu",
    Vendor.AMD: "amd.com/gpu",
    Vendor.INTEL: "gpu.intel.com/xe",
    Vendor.NEURON: "aws.amazon.com/neuron",
}
# The user `nonroot` of distroless images. No engine's image has to define it.
_USER: Final = 65532
SCRATCH: Final = "/tmp"  # noqa: S108 - the pod's own emptyDir, and the only place it can write
_SHARED_MEMORY: Final = 1 << 30  # for each GPU's worker


def pod_template(
    workspace: Workspace,
    release: Release,
    *,
    revision: str,
    uid: str | None = None,
    traced: bool = False,
) -> Json:
    """The Deployment's pod template. `revision` labels a pod with its version, `uid` with its Workspace's.

    `traced`: its starts are in a trace also if its servers send no spans.
    """
    is_traced = traced or workspace.spec.runtime.tracing is not None
    parent = trace_parent(workspace, revision, uid) if is_traced else ""
    return {
        "metadata": {
            # What the spec adds comes first: our own labels, by which pods are selected, always win.
            "labels": {
                **workspace.spec.template.labels,
                **names.labels(workspace.name, names.SERVER, uid),
                names.REVISION: revision,
                names.VARIANT: release.plan.variant,
                **inference_pool_labels(workspace.name),
                **queue_label(workspace.spec.resources),
            },
            "annotations": {
                **workspace.spec.template.annotations,
                names.IMAGE: release.model,
                names.KEY: str(release.key),
                **names.scraped("/metrics", release.plan.port),
                **({names.TRACE: parent} if parent else {}),
            },
        },
        "spec": _pod_spec(workspace, release, uid, parent),
    }


def trace_parent(workspace: Workspace, revision: str, uid: str | None) -> str:
    """The `traceparent` of a version's starts.

    Of the version and not of a start: a template that changed by itself would roll the servers.
    """
    whose = uid or f"{workspace.metadata.namespace}/{workspace.name}"
    found = hashlib.sha256(f"{whose}/{revision}".encode()).hexdigest()
    # W3C Trace Context: version 00, a trace of 16 bytes and a span of 8 in hex, and the flag for sampled.
    return f"00-{found[:32]}-{found[32:48]}-01"


def inference_pool_labels(workspace: str) -> dict[str, str]:
    """Labels by which an llm-d InferencePool selects a model's pods; `both` is prefill and decode in one server."""
    return {
        "llm-d.ai/inference-serving": "true",
        "llm-d.ai/model": workspace,
        "llm-d.ai/role": "both",
    }


def volumes(workspace: Workspace, release: Release, parent: str = "") -> list[Json]:
    """The model, the adapters, scratch space, shared memory, and the spec's own.

    `parent`: the trace in which agents fetch models.
    """
    secret = workspace.spec.model.pull_secret
    shared = _SHARED_MEMORY * max(1, release.plan.node_gpus)
    return [
        model_volume("model", release.model, release.plan.variant, secret, parent),
        *(
            model_volume(f"adapter-{name}", adapter.image, None, secret, parent)
            for name, adapter in sorted(release.adapters.items())
        ),
        {"name": "scratch", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": total_bytes(shared)}},
        *spec_template.volumes(workspace.spec.template),
    ]


def volume_mounts(workspace: Workspace, release: Release) -> list[Json]:
    """The container's mounts of `volumes`."""
    adapters = [
        {
            "name": f"adapter-{name}",
            "mountPath": f"{names.ADAPTERS_DIR}/{name}",
            "readOnly": True,
        }
        for name in sorted(release.adapters)
    ]
    return [
        {"name": "model", "mountPath": names.MODEL_DIR, "readOnly": True},
        *adapters,
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's own emptyDir
        *spec_template.mounts(workspace.spec.template.volume_mounts),
    ]


def model_volume(
    name: str, image: str, variant: str | None, secret: str | None, parent: str = ""
) -> Json:
    """An inline CSI volume: the node's agent pulls, verifies, mounts and leases the model for the pod's life."""
    attributes = {"image": image} | ({"variant": variant} if variant else {})
    attributes |= {"traceparent": parent} if parent else {}
    csi: Json = {"driver": names.CSI_DRIVER, "readOnly": True, "volumeAttributes": attributes}
    if secret:
        csi["nodePublishSecretRef"] = {"name": secret}
    return {"name": name, "csi": csi}


def pod_security(template: PodTemplate = NO_TEMPLATE) -> Json:
    """The restricted standard's settings of a pod, and what `template` needs to write to its volumes."""
    return {
        **spec_template.file_group(template, _USER),
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def environment(release: Release, parent: str = "") -> list[Json]:
    """The plan's environment, plus a writable home for a user that the image doesn't define."""
    derived = {
        "HOME": SCRATCH,
        "USER": "weightyard",  # torch looks up the user's name, which this uid doesn't have
        "VLLM_CACHE_ROOT": f"{SCRATCH}/vllm",
        "XDG_CACHE_HOME": f"{SCRATCH}/cache",
        # By its name a collector tells the server from others, which vLLM calls all the same.
        **({"TRACEPARENT": parent, "OTEL_SERVICE_NAME": release.plan.name} if parent else {}),
    }
    taken = {each.name for each in release.plan.env}
    own = [{"name": n, "value": v} for n, v in derived.items() if n not in taken]
    return own + [env_var(each) for each in release.plan.env]


def resources(spec: Spec, release: Release) -> Json:
    """Requests and limits of the server: its GPUs, and memory estimated from the model unless the spec sets it."""
    resources = spec.resources
    requests = {
        "cpu": canonical(resources.cpu or str(release.cpus)),
        "memory": canonical(resources.memory or total_bytes(release.memory_bytes)),
    }
    # No limit on an estimate: the kernel would kill a server that needs slightly more.
    limits = {"memory": canonical(resources.memory)} if resources.memory else {}
    if release.plan.gpus:
        count = str(release.plan.node_gpus)
        name = gpu_resource(resources)
        # Extended resources need equal requests and limits: the API server refuses any other pod.
        requests, limits = {**requests, name: count}, {**limits, name: count}
    return {"requests": requests, **({"limits": limits} if limits else {})}


def gpu_resource(resources: Resources) -> str:
    """The extended resource's name of the accelerator or its MIG slice."""
    if resources.mig_profile:
        return f"nvidia.com/mig-{resources.mig_profile}"
    return RESOURCE_NAMES[resources.vendor]


def tolerations(resources: Resources, *, gpus: int) -> list[Json]:
    """The spec's tolerations, plus the usual taints of nodes for GPU pods and of spot nodes."""
    own = [_toleration(each) for each in resources.tolerations]
    name = RESOURCE_NAMES[resources.vendor]
    if gpus and not any(each.get("key") == name for each in own):
        own.append({"key": name, "operator": "Exists", "effect": "NoSchedule"})
    taken = {each.get("key") for each in own}
    spot = capacity_tolerations(resources.provisioning)
    return own + [each for each in spot if each["key"] not in taken]


def affinity(spec: Spec, release: Release, existing: Sequence[Term] = ()) -> Json | None:
    """Node affinity: to nodes that hold the model, as `placement` says, and to the capacity and GPUs demanded.

    `existing`: more terms of which a node must fulfil one.
    """
    held = [is_in(names.node_label(release.key), [names.READY])]
    must = [held] if spec.placement is Placement.REQUIRED else []
    terms = both(both(must, demanded_terms(spec.resources, gpus=release.plan.node_gpus)), existing)
    preferred = capacity_preferences(spec.resources.provisioning)
    if spec.placement is Placement.PREFERRED:
        # 100 is the most that Kubernetes lets a preference weigh.
        preferred.insert(0, {"weight": 100, "preference": {"matchExpressions": held}})
    found: Json = {}
    if terms:
        listed = [{"matchExpressions": term} for term in terms]
        found["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": listed}
    if preferred:
        found["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    return {"nodeAffinity": found} if found else None


def container(workspace: Workspace, release: Release, parent: str = "") -> Json:
    """The server's container."""
    plan = release.plan
    probe = {"httpGet": {"path": plan.probes.path, "port": names.PORT_NAME}, "timeoutSeconds": 5}
    stop = drain.pre_stop(plan.engine, port=plan.port, seconds=workspace.spec.runtime.drain_seconds)
    return {
        "name": names.SERVER_CONTAINER,
        "image": release.runtime_image,
        **spec_template.pull_policy(workspace.spec.template),
        "command": list(plan.template.command),
        "args": list(plan.args),
        "env": environment(release, parent),
        "ports": [{"name": names.PORT_NAME, "containerPort": plan.port, "protocol": "TCP"}],
        "resources": resources(workspace.spec, release),
        # The other two probes begin when this one has succeeded: loading weights may take half an hour.
        "startupProbe": {
            **probe,
            "periodSeconds": plan.probes.period_seconds,
            "failureThreshold": plan.probes.startup_failures,
        },
        "readinessProbe": {**probe, "periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
        # The end of the log becomes the pod's status, so that the Workspace can tell why its server ended.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"preStop": {"exec": {"command": stop}}},
        "securityContext": container_security(),
        "volumeMounts": volume_mounts(workspace, release),
    }


def spread(workspace: Workspace, selector: Mapping[str, str]) -> list[Json]:
    """How the pods of `selector` are spread: over nodes, over zones that may be taken back, and as the spec says."""
    over_nodes = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        # Preferred only: a cluster with one node must still run all replicas.
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(selector)},
    }
    over_zones = zone_spread(workspace.spec.resources.provisioning, selector)
    return spec_template.spread_constraints(
        workspace.spec.template, [over_nodes, *over_zones], selector
    )


def _pod_spec(workspace: Workspace, release: Release, uid: str | None, parent: str) -> Json:
    spec, template = workspace.spec, workspace.spec.template
    found = affinity(spec, release)
    accepted = tolerations(spec.resources, gpus=release.plan.gpus)
    selected = spec.resources.node_selector
    secret = spec.model.pull_secret
    return {
        **spec_template.pod_fields(template),
        "serviceAccountName": template.service_account_name or workspace.name,
        "automountServiceAccountToken": False,
        # Service links would set variables such as VLLM_PORT, which vLLM reads as its own.
        "enableServiceLinks": False,
        "securityContext": pod_security(template),
        "terminationGracePeriodSeconds": drain.grace_seconds(spec.runtime.drain_seconds),
        "topologySpreadConstraints": spread(
            workspace, names.selector(workspace.name, names.SERVER, uid)
        ),
        **({"nodeSelector": dict(selected)} if selected else {}),
        **({"tolerations": accepted} if accepted else {}),
        **({"affinity": found} if found else {}),
        **({"imagePullSecrets": [{"name": secret}]} if secret else {}),
        "containers": [
            container(workspace, release, parent),
            *spec_template.sidecars(template),
        ],
        "volumes": volumes(workspace, release, parent),
    }


def _toleration(each: Toleration) -> Json:
    return each.model_dump(mode="json", by_alias=True, exclude_none=True)
