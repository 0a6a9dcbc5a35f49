"""The Kubernetes API requests that the controller makes, with API errors mapped to ours.

Server-side apply for objects and statuses, deletes with preconditions, and plain reads; kopf does the watching. Handles
paths and status codes only, nothing of Workspaces.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import kopf

from cache_agent.api.refusals import refuse
from modelimage.errors import NotFound, Unreachable
from workspace.controller.observed import Reference
from workspace.render import names

Json = dict[str, Any]

_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_PAGE: Final = 500  # objects per page of a list
_TIMEOUT: Final = aiohttp.ClientTimeout(total=60, connect=10)


@dataclass(frozen=True, slots=True)
class ApiResource:
    """The API path of a kind. `api` is `v1` or `group/version`."""

    api: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str | None = None) -> str:
        base = f"/api/{self.api}" if "/" not in self.api else f"/apis/{self.api}"
        where = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{base}{where}/{self.plural}" + (f"/{name}" if name else "")


RESOURCES: Final = {
    "Workspace": ApiResource("weightyard.dev/v1alpha1", "workspaces"),
    "Deployment": ApiResource("apps/v1", "deployments"),
    "Job": ApiResource("batch/v1", "jobs"),
    "ControllerRevision": ApiResource("apps/v1", "controllerrevisions"),
    "Service": ApiResource("v1", "services"),
    "ServiceAccount": ApiResource("v1", "serviceaccounts"),
    "ResourceQuota": ApiResource("v1", "resourcequotas"),
    "LimitRange": ApiResource("v1", "limitranges"),
    "Pod": ApiResource("v1", "pods"),
    "Secret": ApiResource("v1", "secrets"),
    "Node": ApiResource("v1", "nodes", namespaced=False),
    "PodDisruptionBudget": ApiResource("policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ApiResource("networking.k8s.io/v1", "networkpolicies"),
    "HorizontalPodAutoscaler": ApiResource("autoscaling/v2", "horizontalpodautoscalers"),
    "ScaledObject": ApiResource("keda.sh/v1alpha1", "scaledobjects"),
    "CustomResourceDefinition": ApiResource(
        "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False
    ),
    "CachedModel": ApiResource("weightyard.dev/v1alpha1", "cachedmodels", namespaced=False),
    "NodeCache": ApiResource("weightyard.dev/v1alpha1", "nodecaches", namespaced=False),
    "Event": ApiResource("v1", "events"),
    "Lease": ApiResource("coordination.k8s.io/v1", "leases"),
}


class KubernetesApi:
    """One cluster. `connection` is called for each request, since service account tokens are renewed."""

    def __init__(
        self, session: aiohttp.ClientSession, connection: Callable[[], kopf.ConnectionInfo]
    ) -> None:
        self._session = session
        self._connection = connection

    async def get(self, kind: str, namespace: str | None, name: str) -> Json:
        """Reads one object. Raises NotFound."""
        return await self._call("GET", RESOURCES[kind].path(namespace, name))

    async def pages(self, kind: str, *, label: str | None = None) -> AsyncIterator[list[Json]]:
        """Lists all objects of a kind (with a label, if given) in the whole cluster, page by page.

        Raises NotFound when the cluster has no such kind.
        """
        resource, params = RESOURCES[kind], {"limit": str(_PAGE)}
        if label is not None:
            params["labelSelector"] = label
        while True:
            page = await self._call("GET", resource.path(None), params=params)
            # Items of a list have no kind and apiVersion.
            yield [
                {**each, "kind": kind, "apiVersion": resource.api}
                for each in page.get("items") or ()
            ]
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            params = {**params, "continue": token}

    async def merge(self, kind: str, name: str, patch: Json) -> Json:
        """Merge-patches a cluster-scoped object; null removes a field. Returns the result.

        With a resourceVersion in the patch, raises Conflict when the object has changed since.
        """
        path = RESOURCES[kind].path(None, name)
        return await self._call("PATCH", path, patch, content_type=_MERGE)

    async def apply(self, document: Json, *, status: bool = False) -> Json:
        """Server-side apply as field manager `weightyard`, taking over others' fields. Returns the result."""
        metadata = document["metadata"]
        path = RESOURCES[document["kind"]].path(metadata.get("namespace"), metadata["name"])
        return await self._call(
            "PATCH",
            path + ("/status" if status else ""),
            document,
            content_type=_APPLY,
            params={"fieldManager": names.MANAGER, "force": "true"},
        )

    async def create(self, document: Json) -> Json:
        """Creates an object. Raises Conflict when it exists."""
        path = RESOURCES[document["kind"]].path(document["metadata"].get("namespace"))
        return await self._call("POST", path, document)

    async def replace(self, document: Json) -> Json:
        """Replaces an object that was read before. Raises Conflict when it has changed since."""
        metadata = document["metadata"]
        path = RESOURCES[document["kind"]].path(metadata.get("namespace"), metadata["name"])
        return await self._call("PUT", path, document)

    async def delete(self, reference: Reference, namespace: str | None, *, uid: str) -> None:
        """Deletes the object with this uid; a missing one is fine. Raises Conflict when another object has its name."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        path = RESOURCES[reference.kind].path(namespace, reference.name)
        try:
            await self._call("DELETE", path, body)
        except NotFound:
            return

    async def groups(self) -> frozenset[str]:
        """The API groups of the server."""
        answer = await self._call("GET", "/apis")
        return frozenset(str(each["name"]) for each in answer.get("groups", ()))

    async def _call(
        self, method: str, path: str, body: Json | None = None, *,
        content_type: str = "application/json", params: dict[str, str] | None = None,
    ) -> Json:  # fmt: skip
        connection = self._connection()
        headers = {**connection.as_http_headers(), "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            async with self._session.request(
                method, connection.server.rstrip("/") + path, params=params, headers=headers,
                data=None if body is None else json.dumps(body), timeout=_TIMEOUT,
            ) as answer:  # fmt: skip
                text = await answer.text()
                if answer.status >= HTTPStatus.BAD_REQUEST:
                    after = answer.headers.get("Retry-After")
                    refuse(
                        answer.status,
                        text,
                        f"{method} {path}",
                        role="controller",
                        retry_after=after,
                    )
                found = json.loads(text)
        # ValueError: a proxy or load balancer may return a page that isn't JSON.
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"the API server doesn't answer {method} {path}: {error}") from error
        return found if isinstance(found, dict) else {}
