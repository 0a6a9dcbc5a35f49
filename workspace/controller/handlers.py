"""kopf event handlers: watch the kinds of Workspaces and the cache, and pass every event on. No decisions here.

Only event handlers are used: they add no finalizers or annotations to objects, so deleting works while no controller
runs. kopf does the watching: resuming, relisting after 410, backing off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import kopf

from modelimage.errors import InvalidInput
from workspace.controller.cached_model_controller import CacheRunner
from workspace.controller.informers import CACHES, WORKSPACES, label_of
from workspace.controller.kube_api import RESOURCES
from workspace.controller.runner import Runner

Seen = Callable[..., None]  # called with a document, and whether it was `deleted`


def make_registry(
    runner: Runner, caching: CacheRunner, *, with_keda: bool
) -> kopf.OperatorRegistry:
    """The handlers of one controller. Several controllers may run in one process."""
    registry = kopf.OperatorRegistry()
    workspaces = (*WORKSPACES, *(("ScaledObject",) if with_keda else ()))
    for kind in dict.fromkeys((*workspaces, *CACHES)):
        told: list[Seen] = [runner.seen] if kind in workspaces else []
        told += [caching.seen] if kind in CACHES else []
        resource = RESOURCES[kind]
        group, _, version = resource.api.rpartition("/")
        label = label_of(kind)
        labels = None if label is None else {label: kopf.PRESENT}
        kopf.on.event(group, version, resource.plural, registry=registry, labels=labels)(
            _handler(kind, resource.api, told)
        )
    return registry


def _handler(kind: str, api: str, told: Sequence[Seen]) -> Callable[..., Awaitable[None]]:
    async def seen(event: Mapping[str, Any], **_: Any) -> None:
        # Items of a list have no kind and apiVersion.
        document = {**event["object"], "kind": kind, "apiVersion": api}
        for each in told:
            each(document, deleted=event["type"] == "DELETED")

    return seen


def make_settings() -> kopf.OperatorSettings:
    """kopf settings without writes: no Events of its own, no peering."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # kopf keeps a task per object for this long after its last event; the default is too long for
    # thousands of objects.
    settings.queueing.idle_timeout = 0.5
    return settings


def connect() -> kopf.ConnectionInfo:
    """Connects as a pod's service account, else by KUBECONFIG. Raises InvalidInput."""
    found = kopf.login_with_service_account(settings=make_settings()) or kopf.login_with_kubeconfig(
        settings=make_settings()
    )
    if found is None:
        raise InvalidInput(
            "this is no pod and there is no kubeconfig",
            hint="Set KUBECONFIG to a file with a server, a token or a certificate.",
        )
    return found


async def watch(
    registry: kopf.OperatorRegistry,
    *,
    stop: asyncio.Event,
    connection: Callable[[], kopf.ConnectionInfo],
) -> None:
    """Runs kopf's watches until `stop`."""
    kopf.on.login(registry=registry)(lambda **_: connection())
    await kopf.operator(
        registry=registry,
        settings=make_settings(),
        clusterwide=True,
        standalone=True,
        stop_flag=stop,
    )
