"""Watches the controller's kinds of objects and passes every change on to the caches. No decisions here.

One follower per kind lists, watches and lists again when a watch can't be resumed, so deletions that no watch reported
are noticed. A kind that the cluster doesn't have counts as empty and is looked for again: one that it may do without,
such as KEDA's, once its definition is there.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from cache_agent.api.kube.backoff import JitteredBackoff
from cache_agent.api.kube.follower import Follower
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube_objects import API_VERSION
from modelimage.errors import NotFound, WeightyardError
from workspace.controller.cluster.kube_api import RESOURCES
from workspace.controller.observation.interruptions import INTERRUPTED_NODES
from workspace.controller.observation.mount_news import FAILED_MOUNT, PULLING_MODEL
from workspace.controller.observation.node_news import NODE_ANSWERS
from workspace.controller.observation.objects import condition
from workspace.controller.observation.pod_news import MODEL_MOUNTED
from workspace.controller.process.health_server import NOT_LISTED, Liveness
from workspace.controller.process.log_events import about
from workspace.render import names

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Name = tuple[str, str]  # namespace, empty for a cluster's objects, and name

# Kinds whose changes by others must be seen; the rest is compared at each resync only.
WORKSPACES: Final = (
    "Workspace", "Node", "Pod", "Deployment", "ControllerRevision", "Service", "ServiceAccount", "ResourceQuota",
    "LimitRange", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler", "Job", "NodeCache",
    "ScaledObject", "HTTPRoute", "InferencePool", "EndpointSlice", "PodTemplate", "CapacityBuffer", "LeaderWorkerSet",
)  # fmt: skip
# Events are watched for what they tell of pods' volumes and nodes, by a selector of fields each.
EVENTS: Final = (FAILED_MOUNT, PULLING_MODEL, MODEL_MOUNTED, INTERRUPTED_NODES, *NODE_ANSWERS)
CACHES: Final = ("CachedModel", "NodeCache", "Node")
# Kinds that a cluster may do without.
OPTIONAL: Final = (
    "ScaledObject",
    "HTTPRoute",
    "InferencePool",
    "CapacityBuffer",
    "LeaderWorkerSet",
)
# Watched whole; the others are filtered by the Workspace's label, or by one that few of them have.
_WHOLE: Final = frozenset({"Workspace", *CACHES})
_LABELS: Final = {"EndpointSlice": names.ROUTED}
# Seconds. Short, because a change waits for it after the API server was away.
_LONGEST_RETRY: Final = 10.0


class ObjectCache(Protocol):
    """Receives object events and caches the objects."""

    def seen(self, document: Json, *, deleted: bool = False) -> None:
        """Handles the newest state of an object, or its deletion."""

    def known(self, kind: str) -> dict[Name, Json]:
        """The cached objects of a kind, each with the fields that `seen` needs to remove it."""

    def listed(self, kind: str) -> None:
        """Handles that the objects of a kind follow as they are now, with versions that may be lower than before."""


class KindWatch:
    """A follower's listener for one kind. `present` is called when the cluster gains or loses the kind."""

    def __init__(
        self, kind: str, caches: Iterable[ObjectCache], *, liveness: Liveness,
        present: Callable[[str, bool], None],
    ) -> None:  # fmt: skip
        self._kind = kind
        self._caches = tuple(caches)
        self._liveness = liveness
        self._present = present
        self._absent = False
        self._logged = ""
        self.synced = asyncio.Event()
        liveness.watching(kind, NOT_LISTED)

    def replace(self, documents: list[Json]) -> None:
        """Handles a list: all objects there are; cached ones that aren't among them were deleted."""
        self._present(self._kind, True)
        self._absent = False
        self._replace(documents)

    def put(self, document: Json) -> None:
        """Handles a new or changed object."""
        for cache in self._caches:
            _pass_on(self._kind, cache, document, deleted=False)

    def drop(self, document: Json) -> None:
        """Handles a deletion."""
        for cache in self._caches:
            _pass_on(self._kind, cache, document, deleted=True)

    def trouble(self, error: WeightyardError | None) -> None:
        """Records whether the watch works, for readiness."""
        if isinstance(error, NotFound):
            if not self._absent and RESOURCES[self._kind].api == API_VERSION:
                logger.warning(
                    "%s isn't known to the cluster: install Weightyard's CRDs",
                    self._kind,
                    extra=about("kind missing"),
                )
            self._present(self._kind, False)
            self._absent = True
            # An empty list, which counts as the first one: a cluster without the kind must not keep us from leading.
            self._replace([])
            error = None
        problem = error.message if error else ""
        # Once for each problem: an API server that is away for long is asked again every few seconds, for every kind.
        if problem and problem != self._logged:
            logger.warning(
                "%s can't be watched: %s", self._kind, problem, extra=about("watch failed")
            )
        self._logged = problem
        self._liveness.watching(self._kind, problem or None)

    def _replace(self, documents: list[Json]) -> None:
        present = {_name(each) for each in documents}
        for cache in self._caches:
            cache.listed(self._kind)
            for name, document in cache.known(self._kind).items():
                if name not in present:
                    _pass_on(self._kind, cache, document, deleted=True)
        for document in documents:
            self.put(document)
        self.synced.set()


class EventWatch:
    """A follower's listener for Events. They only inform: neither readiness nor leadership waits for them."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._logged = ""

    def replace(self, documents: list[Json]) -> None:
        """Handles a list. What an Event told stays true when it has expired."""
        for document in documents:
            self.put(document)

    def put(self, document: Json) -> None:
        """Handles a new Event, or one that is counted again."""
        _pass_on("Event", self._cache, document, deleted=False)

    def drop(self, document: Json) -> None:
        """Handles that an Event expired."""

    def trouble(self, error: WeightyardError | None) -> None:
        """Logs a problem once."""
        problem = error.message if error else ""
        if problem and problem != self._logged:
            logger.warning(
                "Events can't be watched, so conditions may lack reasons: %s",
                problem,
                extra=about("watch failed"),
            )
        self._logged = problem


class Definition:
    """Listens to the CustomResourceDefinition of a kind that a cluster may do without.

    Whoever follows that kind pauses until it is there, instead of asking for it every few seconds.
    """

    def __init__(self) -> None:
        self._established = asyncio.Event()

    def replace(self, documents: list[Json]) -> None:
        if not documents:
            self._established.clear()
        for each in documents:
            self.put(each)

    def put(self, document: Json) -> None:
        if condition(document, "Established").get("status") == "True":
            self._established.set()
        else:
            self._established.clear()

    def drop(self, _document: Json) -> None:
        self._established.clear()

    def trouble(self, error: WeightyardError | None) -> None:
        # Unknown, such as without the right to read definitions: then asking is all that is left.
        if error is not None:
            if not self._established.is_set():
                logger.warning(
                    "CustomResourceDefinitions can't be watched: %s",
                    error.message,
                    extra=about("watch failed"),
                )
            self._established.set()

    async def pause(self, seconds: float) -> None:
        """Waits some seconds, and then until the kind is there."""
        await asyncio.sleep(seconds)
        await self._established.wait()


class Watches:
    """The followers of all kinds. `present` is told which kinds the cluster has."""

    def __init__(
        self, client: KubeClient, *, workspaces: ObjectCache, cached_models: ObjectCache,
        liveness: Liveness, present: Callable[[str, bool], None],
    ) -> None:  # fmt: skip
        caches: Mapping[str, list[ObjectCache]] = {
            kind: [
                *([workspaces] if kind in WORKSPACES else ()),
                *([cached_models] if kind in CACHES else ()),
            ]
            for kind in (*WORKSPACES, *CACHES)
        }
        self._listeners = {
            kind: KindWatch(kind, found, liveness=liveness, present=present)
            for kind, found in caches.items()
        }
        # Kinds of other operators come and go with them: a watch of a missing one waits for its definition, and asks
        # nothing.
        definitions = {kind: Definition() for kind in OPTIONAL}
        self._followers = [
            Follower(
                client,
                RESOURCES[kind].path(None),
                listener,
                # Of Pods and Deployments a cluster may have tens of thousands; the API server sends only those of
                # Workspaces.
                {} if kind in _WHOLE else {"labelSelector": _LABELS.get(kind, names.WORKSPACE)},
                sleep=definitions[kind].pause if kind in definitions else asyncio.sleep,
                backoff=_backoff(),
            )
            for kind, listener in self._listeners.items()
        ]
        self._followers += [
            Follower(
                client,
                RESOURCES["CustomResourceDefinition"].path(None),
                definition,
                # A watch for each: the selector takes one name, and other definitions can have megabytes.
                {"fieldSelector": f"metadata.name={RESOURCES[kind].definition}"},
                backoff=_backoff(),
            )
            for kind, definition in definitions.items()
        ]
        self._followers += [
            Follower(
                client,
                RESOURCES["Event"].path(None),
                EventWatch(workspaces),
                {"fieldSelector": selector},
                backoff=_backoff(),
            )
            for selector in EVENTS
        ]

    async def run(self) -> None:
        """Watches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for each in self._followers:
                group.create_task(each.run())

    async def synced(self) -> None:
        """Waits until every kind was listed once: an object not yet seen must not look deleted."""
        for each in self._listeners.values():
            await each.synced.wait()


def _pass_on(kind: str, cache: ObjectCache, document: Json, *, deleted: bool) -> None:
    # Items of a list have no kind and apiVersion.
    typed = {**document, "kind": kind, "apiVersion": RESOURCES[kind].api}
    try:
        cache.seen(typed, deleted=deleted)
    except Exception:
        # One odd object must not end the watch that serves all others.
        logger.exception(
            "%s %s can't be read",
            kind,
            "/".join(_name(document)),
            extra=about("object not readable"),
        )


def _backoff() -> JitteredBackoff:
    return JitteredBackoff(random.random, most=_LONGEST_RETRY)


def _name(document: Json) -> Name:
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
