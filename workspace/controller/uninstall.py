"""What has to happen before Weightyard is uninstalled: nobody uses a volume of it, and nodes lose its marks.

Deciding is `users` and node_marks; `leave` does it. The controller is stopped first: it would write the marks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from cache_agent.api.refusals import Conflict
from modelimage.errors import InUse, NotFound, TimedOut
from workspace.controller import node_marks
from workspace.controller.api import KubernetesApi
from workspace.controller.objects import has_labels

Json = dict[str, Any]

DRIVER: Final = "cache.weightyard.dev"
_ENDED: Final = ("Succeeded", "Failed")
_POLL_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 120
_ATTEMPTS: Final = 5  # at a node that others change as well

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Release:
    """What is uninstalled: the controller's Deployment, if it has one. `force` leaves although pods use models."""

    namespace: str
    controller: str | None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """What was done: the nodes that lost marks, and the pods (namespace/name) that use models still."""

    nodes: tuple[str, ...]
    pods: tuple[str, ...]


def users(pods: Iterable[Json]) -> list[str]:
    """The pods, as namespace/name, that have a volume of the driver and haven't ended, in order."""
    found = [
        f"{each['metadata']['namespace']}/{each['metadata']['name']}"
        for each in pods
        if (each.get("status") or {}).get("phase") not in _ENDED
        and any(
            (volume.get("csi") or {}).get("driver") == DRIVER
            for volume in each["spec"].get("volumes") or ()
        )
    ]
    return sorted(found)


async def leave(api: KubernetesApi, release: Release, *, sleep: Sleep = asyncio.sleep) -> Removed:
    """Stop the controller and unmark every node. Doing it twice is doing it once.

    Raises InUse, before anything is changed, while pods use models; TimedOut when the controller doesn't end.
    """
    found = users(await _all(api, "Pod"))
    if found and not release.force:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InUse(
            f"pods use cached models: {', '.join(found[:5])}{more}",
            hint="Delete them first: without the agent nobody unmounts their volumes.",
        )
    if release.controller is not None:
        await _stop(api, release.namespace, release.controller, sleep)
    nodes = [each["metadata"]["name"] for each in await _all(api, "Node")]
    changed = [name for name in nodes if await _unmark(api, name)]
    return Removed(tuple(changed), tuple(found))


async def _stop(api: KubernetesApi, namespace: str, name: str, sleep: Sleep) -> None:
    """Scale the controller to nothing, and wait until its last pod is gone."""
    try:
        found = await api.get("Deployment", namespace, name)
    except NotFound:
        return
    labels = found["spec"]["selector"]["matchLabels"]
    await api.apply(
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": 0},
        }
    )  # fmt: skip
    for _ in range(_STOP_SECONDS):
        pods = await _all(api, "Pod")
        if not any(p["metadata"]["namespace"] == namespace and has_labels(p, labels) for p in pods):
            return
        await sleep(_POLL_SECONDS)
    raise TimedOut(
        f"the controller {namespace}/{name} didn't end within {_STOP_SECONDS} s",
        hint="Look at its pods, then try again.",
    )


async def _unmark(api: KubernetesApi, name: str) -> bool:
    """Take the labels, annotations and the taint off a node; whether there were any."""
    changed = False
    for _ in range(_ATTEMPTS):
        try:
            node = await api.get("Node", None, name)
            patch = node_marks.patch(node_marks.NodeLabels.of(node), node_marks.NodeLabels())
            if patch is not None:
                node, changed = await api.merge("Node", name, patch), True
            untainted = node_marks.without_taint(node)
            if untainted is not None:
                await api.merge("Node", name, untainted)
                changed = True
        except NotFound:
            return changed
        except Conflict:
            continue  # it changed in between: look again
        return changed
    raise Conflict(f"node {name} changes all the time", hint="Try again.")


async def _all(api: KubernetesApi, kind: str) -> list[Json]:
    return [each async for page in api.pages(kind) for each in page]
