"""The watched kinds, and the listing beside the watches: before acting, and periodically.

A watch that restarts after a long outage begins with a list, which doesn't report deletions; a new watch hasn't
delivered everything yet. So a leader lists before it acts, and later drops objects that no list contains.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final, Protocol

from modelimage.errors import NotFound, WeightyardError
from workspace.controller.kube_api import KubernetesApi
from workspace.render import names

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Name = tuple[str, str]  # namespace, empty for a cluster's objects, and name

# Kinds whose changes by others must be seen; the rest is compared at each resync only.
WORKSPACES: Final = (
    "Workspace", "Node", "Pod", "Deployment", "ControllerRevision", "Service", "ServiceAccount", "ResourceQuota",
    "LimitRange", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler", "Job", "NodeCache",
)  # fmt: skip
CACHES: Final = ("CachedModel", "NodeCache", "Node")
_WHOLE: Final = frozenset(
    {"Workspace", *CACHES}
)  # unfiltered; the others are filtered by the Workspace's label
SWEEP_SECONDS: Final = 600.0


class ObjectCache(Protocol):
    """Receives object events and caches the objects."""

    def seen(self, document: Json, *, deleted: bool = False) -> None:
        """Handles the newest state of an object, or its deletion."""

    def known(self, kind: str) -> dict[Name, Json]:
        """The cached objects of a kind, each with the fields that `seen` needs to remove it."""


def label_of(kind: str) -> str | None:
    """The label that watched objects of a kind must have; None watches all."""
    return None if kind in _WHOLE else names.WORKSPACE


async def fill(api: KubernetesApi, kinds: Iterable[str], who: ObjectCache) -> None:
    """Lists the kinds; adds unknown objects and removes missing ones. Raises what lists raise.

    Known objects are left to the watches: a list may be older than their events.
    """
    for kind in kinds:
        # Only objects known before the list began may be removed: others may be newer than the
        # list.
        before, there = who.known(kind), set()
        try:
            async for page in api.pages(kind, label=label_of(kind)):
                # Read again for each page: watches run meanwhile.
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
    """Fills periodically until cancelled. A kind that can't be listed is retried the next time."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        for kind in kinds:
            try:
                await fill(api, [kind], who)
            except WeightyardError as error:
                logger.warning("%s can't be listed: %s", kind, error.message)
