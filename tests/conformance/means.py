"""What the cases need of a server's own side, for the fake one and for real ones."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cache_agent.api.kube.connection import Connection, TokenCredentials
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.kubeconfig import from_kubeconfig, load
from modelimage.errors import NotFound, WeightyardError
from tests.servers import process
from tests.workspace.controller.httpapi import HttpApi

Json = dict[str, Any]
SECONDS = 120
FLOWS = "flowcontrol.apiserver.k8s.io"


@dataclass(frozen=True)
class FakeMeans:
    """Of the fake server."""

    http: HttpApi

    def connection(self, token: str | None) -> Connection:
        whole = self.http.connection()
        return replace(whole, credentials=TokenCredentials(whole.credentials.tls(), token))

    @contextlib.asynccontextmanager
    async def throttled(self, namespace: str, account: str) -> AsyncIterator[None]:
        self.http.callers.throttled[namespace, account] = 3
        yield
        self.http.callers.throttled.clear()

    async def restart(self) -> None:
        async with self.http.away():
            pass


@dataclass(frozen=True)
class RealMeans:
    """Of a cluster, as its administrator. `command` restarts its API server."""

    kubeconfig: Path
    client: KubeClient
    command: str | None

    def connection(self, token: str | None) -> Connection:
        config = load([self.kubeconfig])
        context = config.entry("contexts", config.current)
        cluster = config.entry("clusters", context["cluster"])
        document = {
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token} if token else {}}],
        }  # fmt: skip
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(document, file)
            file.flush()
            return from_kubeconfig([Path(file.name)], programs=False)

    @contextlib.asynccontextmanager
    async def throttled(self, namespace: str, account: str) -> AsyncIterator[None]:
        """By priority and fairness: a level without seats serves one request at a time, and rejects others."""
        limits: Json = {
            "nominalConcurrencyShares": 0,
            "lendablePercent": 0,
            "borrowingLimitPercent": 0,
        }
        api = f"{FLOWS}/v1"
        try:
            await self.client.get(f"/apis/{api}/flowschemas")
        except NotFound:  # before Kubernetes 1.29
            limits, api = {"assuredConcurrencyShares": 1}, f"{FLOWS}/v1beta2"
        name = f"conformance-{uuid.uuid4().hex[:8]}"
        level = {"type": "Limited", "limited": {**limits, "limitResponse": {"type": "Reject"}}}
        flow = {
            "priorityLevelConfiguration": {"name": name}, "matchingPrecedence": 2,
            "rules": [_whatever(namespace, account)],
        }  # fmt: skip
        async with contextlib.AsyncExitStack() as stack:
            for kind, spec in (("PriorityLevelConfiguration", level), ("FlowSchema", flow)):
                path = f"/apis/{api}/{kind.lower()}s"
                metadata = {"name": name}
                document = {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}
                await self.client.create(path, document)
                stack.push_async_callback(self.client.call, "DELETE", f"{path}/{name}")
            yield

    async def restart(self) -> None:
        assert self.command is not None
        await asyncio.to_thread(subprocess.run, shlex.split(self.command), check=True)
        async with asyncio.timeout(SECONDS):
            while not await self._answers():  # noqa: ASYNC110 - nobody here can tell
                await asyncio.sleep(process.POLL_SECONDS)

    async def _answers(self) -> bool:
        try:
            await self.client.get("/api")
        except WeightyardError:
            return False
        return True


def _whatever(namespace: str, account: str) -> Json:
    """Everything that a service account asks, as a rule of a FlowSchema."""
    who = {
        "kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": account},
    }  # fmt: skip
    every = {
        "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": True, "namespaces": ["*"],
    }  # fmt: skip
    return {"subjects": [who], "resourceRules": [every]}
