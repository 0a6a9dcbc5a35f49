"""The Kubernetes API requests that the controller makes, with API errors mapped to ours.

Server-side apply for objects and statuses, deletes with preconditions, and plain reads; `watches` does the watching.
Knows kinds and paths only, nothing of Workspaces.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from cache_agent.api.kube.kube_client import APPLY_PATCH, KubeClient
from modelimage.errors import NotFound
from workspace.controller.observation.observed import Reference
from workspace.render import names

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ApiResource:
    """The API path of a kind. `api` is `v1` or `group/version`."""

    api: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str | None = None) -> str:
        # The core group has no name, and its own prefix instead.
        base = f"/api/{self.api}" if "/" not in self.api else f"/apis/{self.api}"
        where = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{base}{where}/{self.plural}" + (f"/{name}" if name else "")

    @property
    def definition(self) -> str:
        """The name of a custom resource's CustomResourceDefinition."""
        return f"{self.plural}.{self.api.partition('/')[0]}"


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
    "ConfigMap": ApiResource("v1", "configmaps"),
    "Secret": ApiResource("v1", "secrets"),
    "Node": ApiResource("v1", "nodes", namespaced=False),
    "PodDisruptionBudget": ApiResource("policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ApiResource("networking.k8s.io/v1", "networkpolicies"),
    "HorizontalPodAutoscaler": ApiResource("autoscaling/v2", "horizontalpodautoscalers"),
    "ScaledObject": ApiResource("keda.sh/v1alpha1", "scaledobjects"),
    "HTTPRoute": ApiResource("gateway.networking.k8s.io/v1", "httproutes"),
    "InferencePool": ApiResource("inference.networking.k8s.io/v1", "inferencepools"),
    "CapacityBuffer": ApiResource("autoscaling.x-k8s.io/v1beta1", "capacitybuffers"),
    "PodTemplate": ApiResource("v1", "podtemplates"),
    "LeaderWorkerSet": ApiResource("leaderworkerset.x-k8s.io/v1", "leaderworkersets"),
    "EndpointSlice": ApiResource("discovery.k8s.io/v1", "endpointslices"),
    "CustomResourceDefinition": ApiResource(
        "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False
    ),
    "CachedModel": ApiResource("weightyard.dev/v1alpha1", "cachedmodels", namespaced=False),
    "NodeCache": ApiResource("weightyard.dev/v1alpha1", "nodecaches", namespaced=False),
    "Event": ApiResource("v1", "events"),
    "Lease": ApiResource("coordination.k8s.io/v1", "leases"),
}


class KubernetesApi:
    """One cluster's objects by kind."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def get(self, kind: str, namespace: str | None, name: str) -> Json:
        """Reads one object. Raises NotFound."""
        return await self._client.get(RESOURCES[kind].path(namespace, name))

    async def log(self, namespace: str, pod: str, *, container: str, most: int) -> str:
        """The first bytes of a container's log, each line with its time. Raises InvalidInput before it runs."""
        path = RESOURCES["Pod"].path(namespace, pod) + "/log"
        query = {"container": container, "timestamps": "true", "limitBytes": str(most)}
        return await self._client.text(path, query)

    async def pages(
        self, kind: str, *, namespace: str | None = None, labels: str = ""
    ) -> AsyncIterator[list[Json]]:
        """Lists all objects of a kind, page by page. Raises NotFound for an unknown kind.

        They are those of the whole cluster, or of a namespace, with the labels of a selector such as `a=b,c=d`.
        """
        resource = RESOURCES[kind]
        query = {"labelSelector": labels} if labels else {}
        async for items, _ in self._client.pages(resource.path(namespace), query):
            # Items of a list have no kind and apiVersion.
            yield [{**each, "kind": kind, "apiVersion": resource.api} for each in items]

    async def merge(
        self,
        kind: str,
        name: str,
        patch: Json,
        *,
        namespace: str | None = None,
        status: bool = False,
    ) -> Json:
        """Merge-patches an object, or its status; null removes a field. Returns the result.

        With a resourceVersion in the patch, raises Conflict when the object has changed since.
        """
        path = RESOURCES[kind].path(namespace, name) + ("/status" if status else "")
        return await self._client.patch(path, patch)

    async def apply(
        self, document: Json, *, status: bool = False, manager: str = names.MANAGER
    ) -> Json:
        """Server-side apply as a field manager, taking over others' fields. Returns the result."""
        metadata = document["metadata"]
        path = RESOURCES[document["kind"]].path(metadata.get("namespace"), metadata["name"])
        return await self._client.call(
            "PATCH",
            path + ("/status" if status else ""),
            document,
            content_type=APPLY_PATCH,
            # Without force, a field that somebody has set by hand would make every later pass a conflict.
            query={"fieldManager": manager, "force": "true"},
        )

    async def create(self, document: Json) -> Json:
        """Creates an object. Raises Conflict when it exists."""
        path = RESOURCES[document["kind"]].path(document["metadata"].get("namespace"))
        return await self._client.create(path, document)

    async def replace(self, document: Json) -> Json:
        """Replaces an object that was read before. Raises Conflict when it has changed since."""
        metadata = document["metadata"]
        path = RESOURCES[document["kind"]].path(metadata.get("namespace"), metadata["name"])
        return await self._client.call("PUT", path, document)

    async def delete(self, reference: Reference, namespace: str | None, *, uid: str) -> None:
        """Deletes the object with this uid; a missing one is fine. Raises Conflict when another object has its name."""
        # Background: what depends on it is for the API server's garbage collector, and nobody waits here.
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        path = RESOURCES[reference.kind].path(namespace, reference.name)
        try:
            await self._client.call("DELETE", path, body)
        except NotFound:
            return
