"""Prepares uninstalling: requires that no pod uses our volumes, and removes what is ours from nodes.

`users` and node_labels decide; `leave` executes. The controller is stopped first, or it would write the labels again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from cache_agent.api.kube.refusals import Conflict
from cache_agent.api.shared_names import CSI_DRIVER
from modelimage.errors import InUse, NotFound, TimedOut, WeightyardError
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.observation import node_condition, node_labels
from workspace.controller.observation.node_condition import NodeCondition
from workspace.controller.observation.objects import has_labels

Json = dict[str, Any]

_ENDED: Final = ("Succeeded", "Failed")
_POLL_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 120
_ATTEMPTS: Final = 5  # per node, on conflicts with other writers

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Installation:
    """The installation: its namespace and its controller's Deployment. `force` proceeds although pods use models."""

    namespace: str
    controller: str | None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """The result: nodes that lost labels, and pods (namespace/name) that still use models."""

    nodes: tuple[str, ...]
    pods: tuple[str, ...]


def users(pods: Iterable[Json]) -> list[str]:
    """The pods, as namespace/name, that have a volume of the driver and haven't ended, in order."""
    found = [
        f"{each['metadata']['namespace']}/{each['metadata']['name']}"
        for each in pods
        if (each.get("status") or {}).get("phase") not in _ENDED
        and any(
            (volume.get("csi") or {}).get("driver") == CSI_DRIVER
            for volume in each["spec"].get("volumes") or ()
        )
    ]
    return sorted(found)


async def leave(
    api: KubernetesApi, release: Installation, *, sleep: Sleep = asyncio.sleep
) -> Removed:
    """Stops the controller and removes labels and taints from every node. Idempotent.

    Raises InUse, before any change, while pods use models; TimedOut when the controller doesn't stop. After an error
    the controller has the replicas that it had before.
    """
    found = users(await _all(api, "Pod"))
    if found and not release.force:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InUse(
            f"pods use cached models: {', '.join(found[:5])}{more}",
            hint="Delete them, since without the agent their volumes can't be unmounted; then run `helm uninstall` "
            "again. To keep Weightyard: `helm rollback RELEASE REVISION`, with the revision of `helm status RELEASE`.",
        )
    deployment = await _controller(api, release)
    try:
        if deployment is not None:
            await _stop(api, deployment, sleep)
        # Listed after the controller has stopped, so that no label is added later.
        nodes = [each["metadata"]["name"] for each in await _all(api, "Node")]
        changed = [name for name in nodes if await _unmark(api, name)]
    except (WeightyardError, asyncio.CancelledError):
        # The release stays, so it must go on working; helm conflicts with another number of replicas.
        if deployment is not None:
            await _scale(api, deployment, deployment["spec"].get("replicas", 1))
        raise
    return Removed(tuple(changed), tuple(found))


async def _controller(api: KubernetesApi, release: Installation) -> Json | None:
    """The controller's Deployment; None when there is none."""
    if release.controller is None:
        return None
    try:
        return await api.get("Deployment", release.namespace, release.controller)
    except NotFound:
        return None


async def _stop(api: KubernetesApi, deployment: Json, sleep: Sleep) -> None:
    """Scales the controller to zero and waits until its last pod is gone."""
    metadata, labels = deployment["metadata"], deployment["spec"]["selector"]["matchLabels"]
    namespace = metadata["namespace"]
    await _scale(api, deployment, 0)
    for _ in range(_STOP_SECONDS):
        # The pods themselves, not the Deployment's count: one that is still
        # ending may write labels once more.
        pods = await _all(api, "Pod")
        if not any(p["metadata"]["namespace"] == namespace and has_labels(p, labels) for p in pods):
            return
        await sleep(_POLL_SECONDS)
    raise TimedOut(
        f"the controller {namespace}/{metadata['name']} didn't end within {_STOP_SECONDS} s",
        hint="Look at its pods, then try again.",
    )


async def _scale(api: KubernetesApi, deployment: Json, replicas: int) -> None:
    metadata = {name: deployment["metadata"][name] for name in ("name", "namespace")}
    await api.apply(
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {"replicas": replicas},
        }
    )  # fmt: skip


async def _unmark(api: KubernetesApi, name: str) -> bool:
    """Removes our labels, annotations, condition and taint from a node. Returns whether there were any."""
    changed = False
    for _ in range(_ATTEMPTS):
        try:
            node = await api.get("Node", None, name)
            patch = node_labels.patch(
                node_labels.NodeLabels.from_document(node), node_labels.NodeLabels()
            )
            if patch is not None:
                # Each write starts from the answer to the one before: an old
                # resourceVersion would be a conflict.
                node, changed = await api.merge("Node", name, patch), True
            if NodeCondition.from_document(node) is not None:
                node, changed = await _without_condition(api, name), True
            untainted = node_labels.without_taint(node)
            if untainted is not None:
                await api.merge("Node", name, untainted)
                changed = True
        except NotFound:
            return changed
        except Conflict:
            continue  # changed in between: read it again
        return changed
    raise Conflict(f"node {name} keeps being changed by others", hint="Try again.")


async def _without_condition(api: KubernetesApi, name: str) -> Json:
    # Apply removes what its manager owned and states no more: here the condition.
    document = node_condition.to_apply(name, None, None, "")
    return await api.apply(document, status=True, manager=node_condition.MANAGER)


async def _all(api: KubernetesApi, kind: str) -> list[Json]:
    return [each async for page in api.pages(kind) for each in page]
