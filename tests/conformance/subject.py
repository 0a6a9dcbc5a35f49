"""One namespace of an API server, and the objects that the cases make in it."""

from __future__ import annotations

import itertools
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from cache_agent.api.kube.connection import Connection
from cache_agent.api.kube.kube_client import APPLY_PATCH, KubeClient
from workspace.controller.cluster.kube_api import RESOURCES

Json = dict[str, Any]
NUMBERS = itertools.count()
MERGE = "application/merge-patch+json"


class Means(Protocol):
    """What only the server's own side can do."""

    def connection(self, token: str | None) -> Connection:
        """A connection of a caller that has this token and nothing else."""

    def throttled(self, namespace: str, account: str) -> AbstractAsyncContextManager[None]:
        """In this context a service account asks too often when it asks several things at a time."""

    async def restart(self) -> None:
        """End the server, and return when another answers in its place."""


@dataclass(frozen=True)
class Subject:
    """The server under test, reached by the product's own client."""

    client: KubeClient
    namespace: str
    means: Means

    def path(self, kind: str, name: str | None = None) -> str:
        return RESOURCES[kind].path(self.namespace, name)

    async def create(self, document: Json) -> Json:
        return await self.client.create(self.path(document["kind"]), document)

    async def get(self, kind: str, name: str) -> Json:
        return await self.client.get(self.path(kind, name))

    async def list(self, kind: str, **query: str) -> Json:
        return await self.client.call("GET", self.path(kind), query=query)

    async def apply(
        self, document: Json, manager: str, *, force: bool = False, status: bool = False
    ) -> Json:
        path = self.path(document["kind"], document["metadata"]["name"])
        query = {"fieldManager": manager, **({"force": "true"} if force else {})}
        return await self.client.call(
            "PATCH", path + ("/status" if status else ""), document,
            content_type=APPLY_PATCH, query=query,
        )  # fmt: skip

    async def merge(self, kind: str, name: str, patch: Json, *, status: bool = False) -> Json:
        path = self.path(kind, name) + ("/status" if status else "")
        return await self.client.call("PATCH", path, patch, content_type=MERGE)

    async def replace(self, document: Json) -> Json:
        path = self.path(document["kind"], document["metadata"]["name"])
        return await self.client.call("PUT", path, document)

    async def token(self, account: str) -> str:
        """A new token of a service account."""
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 600},
        }
        path = f"{self.path('ServiceAccount', account)}/token"
        token: str = (await self.client.create(path, asked))["status"]["token"]
        return token

    async def delete(self, kind: str, name: str, *, uid: str | None = None) -> None:
        body = {"preconditions": {"uid": uid}} if uid else {}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        await self.client.call("DELETE", self.path(kind, name), {**options, **body})


def new_name() -> str:
    return f"object-{next(NUMBERS)}"


def account(**metadata: Any) -> Json:
    """A small object that no controller touches."""
    return {
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": new_name(), **metadata},
    }  # fmt: skip


def deployment(name: str, **spec: Any) -> Json:
    """A Deployment without replicas, so that nothing runs."""
    container = {"name": "main", "image": "registry.invalid/none"}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": template, **spec},
    }  # fmt: skip


def workspace(name: str, **spec: Any) -> Json:
    return {
        "apiVersion": "weightyard.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": name},
        "spec": {"model": {"image": "registry.invalid/team/model:v1"}, "replicas": 0, **spec},
    }  # fmt: skip
