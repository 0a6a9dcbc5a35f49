"""Which kinds are watched, and how what is there is learnt beside the watches: at first, and now and then again.

A watch that was away for too long starts anew with a list, which doesn't say what was deleted meanwhile; and a watch
that has only begun hasn't told everything yet. So a leader lists before it acts, and later drops what no list has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final, Protocol

from modelimage.errors import NotFound, WeightyardError
from workspace.controller.api import KubernetesApi
from workspace.render import names

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Name = tuple[str, str]  # namespace, empty for a cluster's objects, and name

# Changes of others that reconcile must see; the rest is compared at each resync only.
WORKSPACES: Final = (
    "Workspace", "Node", "Pod", "Deployment", "ControllerRevision", "Service", "ServiceAccount", "ResourceQuota",
    "LimitRange", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler", "Job", "NodeCache",
)  # fmt: skip
CACHES: Final = ("CachedModel", "NodeCache", "Node")
_WHOLE: Final = frozenset({"Workspace", *CACHES})  # the others by the Workspace's label only
SWEEP_SECONDS: Final = 600.0


class ObjectCache(Protocol):
    """Whoever is told of objects, and remembers them."""

    def seen(self, document: Json, *, deleted: bool = False) -> None:
        """The newest state of an object, or its end."""

    def known(self, kind: str) -> dict[Name, Json]:
        """The objects of a kind that are remembered, each with as much of it as `seen` needs to forget it."""


def label_of(kind: str) -> str | None:
    """The label that objects of a kind must have to be watched; None for all objects."""
    return None if kind in _WHOLE else names.WORKSPACE


async def fill(api: KubernetesApi, kinds: Iterable[str], who: ObjectCache) -> None:
    """Tell of what isn't known yet, and of what isn't there any more. Raises what lists raise.

    What is known is left to the watches: a list may be older than what they told.
    """
    for kind in kinds:
        before, there = who.known(kind), set()
        try:
            async for page in api.pages(kind, label=label_of(kind)):
                known = who.known(kind)
                for document in page:
                    name = _name(document)
                    there.add(name)
                    if name not in known:
                        who.seen(document)
        except NotFound:
            continue  # the cluster has no such kind
        for name in set(before) - there:
            who.seen(before[name], deleted=True)


def _name(document: Json) -> Name:
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


async def sweep(api: KubernetesApi, kinds: Iterable[str], who: ObjectCache) -> None:
    """Fill again and again until cancelled; what can't be listed now is listed the next time."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        for kind in kinds:
            try:
                await fill(api, [kind], who)
            except WeightyardError as error:
                logger.warning("%s can't be listed: %s", kind, error.message)
