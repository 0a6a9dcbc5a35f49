"""The objects that scale a Workspace's servers in place of the built-in scaler: a HorizontalPodAutoscaler, or KEDA's.

Both get the built-in scaler's windows and steps. They own the number of replicas, so whoever needs more of them for a
while raises `least` instead of writing the number itself.
"""

from __future__ import annotations

from typing import Any, Final

from modelimage.errors import InvalidInput
from workspace import arguments
from workspace.engines import QUEUE_METRICS
from workspace.render import names
from workspace.render.groups import API_VERSION, KIND
from workspace.runtime_spec import Engine
from workspace.scale_spec import Autoscaler, Scale
from workspace.scaler import DEFAULT_BATCH
from workspace.schema import Workspace
from workspace.server_metrics import HELD

Json = dict[str, Any]

# Seconds between KEDA's questions while no server may run: a client waits for the answer.
_KEDA_PERIOD: Final = 5


def autoscaler(
    workspace: Workspace, metadata: Json, *, least: int = 0, grouped: bool = False
) -> list[Json]:
    """The object that scales, with this metadata, if the spec has one. It keeps at least `least` replicas.

    `grouped`: replicas are groups of a LeaderWorkerSet, and else pods of a Deployment.
    """
    scale = workspace.spec.scale
    if scale is None or scale.by is Autoscaler.BUILTIN:
        return []
    bounds = max(scale.min, least), max(scale.max, least)
    if scale.by is Autoscaler.KEDA:
        return [_scaled_object(workspace, scale, metadata, bounds, grouped=grouped)]
    return [_horizontal_autoscaler(workspace, scale, metadata, bounds, grouped=grouped)]


def _scaled(workspace: Workspace, *, grouped: bool) -> Json:
    """The object whose replicas change."""
    if grouped:
        return {"apiVersion": API_VERSION, "kind": KIND, "name": names.group(workspace.name)}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": workspace.name}


def _behavior(scale: Scale) -> Json:
    """The windows and steps of the built-in scaler: at most doubles up, one replica down."""
    minute = {"periodSeconds": 60}
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": scale.up_window_seconds,
            "policies": [{"type": "Percent", "value": 100, **minute}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": scale.down_window_seconds,
            "policies": [{"type": "Pods", "value": 1, **minute}],
        },
    }


def _horizontal_autoscaler(
    workspace: Workspace, scale: Scale, metadata: Json, bounds: tuple[int, int], *, grouped: bool
) -> Json:
    _, waiting = _gauges(workspace)
    metric = {
        "type": "Pods",
        "pods": {
            # The name under which a metrics adapter publishes it: the custom metrics API allows no colon.
            "metric": {"name": waiting.replace(":", "_")},
            "target": {"type": "AverageValue", "averageValue": str(scale.queue_depth)},
        },
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": _scaled(workspace, grouped=grouped),
            # A HorizontalPodAutoscaler takes 0 only with the feature gate HPAScaleToZero.
            "minReplicas": max(1, bounds[0]),
            "maxReplicas": bounds[1],
            "metrics": [metric],
            "behavior": _behavior(scale),
        },
    }


def _scaled_object(
    workspace: Workspace, scale: Scale, metadata: Json, bounds: tuple[int, int], *, grouped: bool
) -> Json:
    running, waiting = _gauges(workspace)
    namespace = f'namespace="{workspace.metadata.namespace or "default"}"'
    # A Deployment's pods are NAME-HASH-RANDOM, cut to 63 characters; `NAME-.*` would also match another's, NAME-x.
    pods = f"{workspace.name}-[a-z0-9]+-?[a-z0-9]{{5}}"
    if grouped:
        pods = f"{names.group(workspace.name)}-[0-9]+"
    servers = f'{namespace},pod=~"{pods}"'
    # Without a server only the activator knows of requests. Names with `--` are derived from the Workspace's own.
    held = f'{HELD}{{{namespace},pod=~"{workspace.name}--.+"}}'
    # In one sum: `or` takes the samples of both, as their labels differ.
    queue = f"sum({waiting}{{{servers}}}" + (f" or {held})" if scale.min == 0 else ")")
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": _scaled(workspace, grouped=True)
            if grouped
            else {"name": workspace.name},
            "minReplicaCount": bounds[0],
            "maxReplicaCount": bounds[1],
            # KEDA's cooldown is for the step to 0 alone; the behavior below has the windows of all others.
            "cooldownPeriod": scale.down_window_seconds,
            **({"pollingInterval": _KEDA_PERIOD} if scale.min == 0 else {}),
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scale)}},
            "triggers": [
                _trigger(scale, queue, scale.queue_depth),
                # Without it a server that works, and has no queue, would be stopped after the cooldown.
                _trigger(scale, f"sum({running}{{{servers}}})", _batch(workspace)),
            ],
        },
    }


def _trigger(scale: Scale, query: str, threshold: int) -> Json:
    return {
        "type": "prometheus",
        "metadata": {
            "serverAddress": scale.prometheus or "",
            "query": query,
            "threshold": str(threshold),
            # KEDA starts a server when the value is above this: one request is enough.
            "activationThreshold": "0",
        },
    }


def _batch(workspace: Workspace) -> int:
    """The requests that one server runs at a time."""
    try:
        found = arguments.count_of(workspace.spec.runtime.args, "--max-num-seqs")
    except InvalidInput:
        # Nothing is planned with such an argument, and the plan's error says why.
        return DEFAULT_BATCH
    return found or DEFAULT_BATCH


def _gauges(workspace: Workspace) -> tuple[str, str]:
    """The gauges of requests that run and that wait; vLLM's for engines that publish none by default."""
    return QUEUE_METRICS.get(workspace.spec.runtime.engine, QUEUE_METRICS[Engine.VLLM])
