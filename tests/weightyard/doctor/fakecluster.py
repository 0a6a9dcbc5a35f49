"""An API server with nodes on which pods of the doctor run: what `weightyard doctor --cluster` asks.

Over real HTTP for one test with a kubectl; the others spare themselves a process for each call (`InProcess`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.servers.httpserver import Handler, LoopbackServer
from tests.workspace import openapi
from weightyard.doctor.cluster_checks import DRIVER_SPEC
from weightyard.doctor.facts import HostFacts
from weightyard.kubectl import Kubectl, refused

Json = dict[str, Any]
PODS = "/api/v1/namespaces/weightyard/pods"


class _Api(Handler):
    def do_GET(self) -> None:
        cluster: FakeCluster = self.server.owner  # type: ignore[attr-defined]
        address = urlsplit(self.path)
        found = cluster.get(address.path, parse_qs(address.query))
        if found is None:
            self.answer(404, json.dumps({"message": f"no {address.path}"}).encode())
        else:
            self.answer(
                200, found.encode() if isinstance(found, str) else json.dumps(found).encode()
            )

    def do_POST(self) -> None:
        cluster: FakeCluster = self.server.owner  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, found = cluster.create(self.path, body)
        self.answer(status, json.dumps(found).encode())

    def do_DELETE(self) -> None:
        cluster: FakeCluster = self.server.owner  # type: ignore[attr-defined]
        gone = cluster.pods.pop(self.path.removeprefix(f"{PODS}/"), None)
        self.answer(404 if gone is None else 200, b"{}")


class FakeCluster(LoopbackServer):
    """`documents` by path; `allowed` says what the caller may; `node` runs a pod: its facts, or words in its log, or
    None while it hasn't ended. `started` are all pods that ever were."""

    HANDLER = _Api

    def __init__(self, node: Callable[[str], HostFacts | str | None], nodes: list[Json]) -> None:
        self.node = node
        self.pods: dict[str, Json] = {}
        self.started: list[Json] = []
        self.allowed: Callable[[Json], bool] = lambda attributes: True
        self.nodes = nodes
        self.documents: dict[str, Json] = {
            "/version": {"gitVersion": "v1.31.2"},
            "/apis": {"groups": [{"name": "apps"}]},
            "/apis/admissionregistration.k8s.io/v1": {"resources": [{"name": "validatingadmissionpolicies"}]},
            "/apis/storage.k8s.io/v1/csinodes": {
                "items": [{"metadata": {"name": each["metadata"]["name"]}, "spec": {"drivers": [
                    {"name": "cache.weightyard.dev"}]}} for each in nodes]
            },
            "/apis/storage.k8s.io/v1/csidrivers/cache.weightyard.dev": {"spec": dict(DRIVER_SPEC)},
            "/api/v1/namespaces/weightyard": {
                "metadata": {"name": "weightyard", "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}
            },
        }  # fmt: skip

    def get(self, path: str, query: dict[str, list[str]]) -> Json | str | None:
        selector = dict(
            each.split("=") for each in query.get("labelSelector", [""])[0].split(",") if each
        )
        if path == "/api/v1/nodes":
            return {
                "items": [
                    e for e in self.nodes if selector.items() <= e["metadata"]["labels"].items()
                ]
            }
        if path == PODS:
            return {
                "items": [
                    self._lived(e)
                    for e in self.pods.values()
                    if selector.items() <= e["metadata"]["labels"].items()
                ]
            }
        if path == "/api/v1/namespaces/weightyard/events":
            return {"items": [{"message": "MountVolume.SetUp failed: no such directory"}]}
        if path.startswith(f"{PODS}/"):
            name, _, what = path.removeprefix(f"{PODS}/").partition("/")
            pod = self.pods.get(name)
            return self._log(pod) if pod and what == "log" else pod and self._lived(pod)
        return self.documents.get(path)  # fmt: skip

    def create(self, path: str, body: Json) -> tuple[int, Json]:
        if path.endswith("/selfsubjectaccessreviews"):
            allowed = self.allowed(body["spec"]["resourceAttributes"])
            return 201, {**body, "status": {"allowed": allowed}}
        assert path == PODS
        for version in (openapi.OLDEST, openapi.NEWEST):
            assert openapi.problems(body, version) == []
        if body["metadata"]["name"] in self.pods:
            return 409, {"message": "already exists"}
        self.pods[body["metadata"]["name"]] = body
        self.started.append(body)
        return 201, body

    def _lived(self, pod: Json) -> Json:
        told = self.node(pod["spec"]["nodeName"])
        if told is None:
            waiting = [{"state": {"waiting": {"reason": "ContainerCreating"}}}]
            return {**pod, "status": {"phase": "Pending", "containerStatuses": waiting}}
        return {**pod, "status": {"phase": "Failed" if isinstance(told, str) else "Succeeded"}}

    def _log(self, pod: Json) -> str:
        told = self.node(pod["spec"]["nodeName"])
        return told.model_dump_json() + "\n" if isinstance(told, HostFacts) else f"error: {told}\n"


class InProcess(Kubectl):
    """kubectl's answers without a kubectl."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__()
        self._cluster = cluster

    def _run(self, verb: str, path: str, document: Json | None = None) -> str:
        address = urlsplit(path)
        found: Json | str | None
        if verb == "get":
            found = self._cluster.get(address.path, parse_qs(address.query))
        elif verb == "delete":
            found = self._cluster.pods.pop(address.path.removeprefix(f"{PODS}/"), None)
        else:
            _, found = self._cluster.create(path, document or {})
        if found is None:
            raise refused(f"Error from server (NotFound): {path}")
        return found if isinstance(found, str) else json.dumps(found)
