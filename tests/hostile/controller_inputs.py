"""What Workspaces, registries and servers can give a controller to hold, as much at once as they can: each a row."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.hostile.images import REGISTRY_ANSWERS
from tests.hostile.servers import MIB, Answer, HostileServer, document, endless, gzip_bomb
from tests.servers.process import wait_until
from tests.workspace import samples
from tests.workspace.controller.fakeapi import FakeApi
from workspace.controller.loops.server_pages import PAGE_BYTES
from workspace.controller.observation.ownership import owned_by
from workspace.render import names

Json = dict[str, Any]
# As many of each as fill all of a controller's threads.
THREADS: Final = 12
NAMESPACES: Final = 6
REGISTRIES: Final = 4
PODS: Final = 32
CONNECTIONS: Final = 1000


@dataclass(frozen=True)
class Cluster:
    """The objects of a cluster with a controller, and the hostile servers. `health`: the controller's own server."""

    api: FakeApi
    servers: Sequence[HostileServer]
    health: str

    def images(self, place: str) -> None:
        """Workspaces of many namespaces, each with an image of its own; until all have an answer."""
        for number in range(THREADS):
            host = self.servers[number % len(self.servers)].host
            image = f"{host}/{place}/m{number}:v1"
            self.api.create(
                samples.document(
                    f"w{number}", namespace=f"team-{number % NAMESPACES}", model={"image": image}
                )
            )
        wait_until(self._are_told, what="conditions of all Workspaces")

    def _are_told(self) -> bool:
        found = self.api.list("Workspace")
        return all(
            any(each["reason"] not in ("Resolving",) for each in _conditions(workspace))
            for workspace in found
        )

    def servers_answer(self, place: str) -> None:
        """A scaled Workspace with many servers whose metrics are hostile; until they were read several times."""
        workspace = self.api.create(
            samples.document("scaled", namespace="team-a", scale={"min": 0, "max": 99})
        )
        labels = names.selector("scaled", names.SERVER)
        port = int(self.servers[0].host.rpartition(":")[2])
        self.api.create(owned_by(_deployment(labels), workspace))
        for number in range(PODS):
            self.api.create(_pod(number, labels, port))
        wait_until(
            lambda: len(self.servers[0].requests) >= 3 * PODS, what="readings of the metrics"
        )

    def idle_connections(self) -> None:
        host, _, port = self.health.rpartition(":")
        with contextlib.ExitStack() as stack:
            for number in range(CONNECTIONS):
                source = (f"127.0.{1 + number % 200}.{1 + number // 200}", 0)
                with contextlib.suppress(OSError):
                    client = stack.enter_context(
                        socket.create_connection((host, int(port)), source_address=source)
                    )
                    client.sendall(b"GET /x HTTP/1.1\r\nX-Long: " + b"x" * 8000)


def _conditions(workspace: Json) -> list[Json]:
    return list((workspace.get("status") or {}).get("conditions") or ())


def _deployment(labels: Json) -> Json:
    return {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "scaled", "namespace": "team-a", "labels": {names.WORKSPACE: "scaled"}},
        "spec": {
            "replicas": PODS, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": []}},
        },
    }  # fmt: skip


def _pod(number: int, labels: Json, port: int) -> Json:
    ports = [{"name": names.PORT_NAME, "containerPort": port}]
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": f"scaled-{number}", "namespace": "team-a", "labels": labels},
        "spec": {"containers": [{"name": names.SERVER_CONTAINER, "ports": ports}]},
        "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


@dataclass(frozen=True)
class ControllerInput:
    """`answers` of the hostile servers, and what is done to the cluster."""

    act: Callable[[Cluster], None]
    answers: Callable[[], Answer] | None = None


def _metrics(answer: Callable[[], Answer]) -> ControllerInput:
    return ControllerInput(lambda cluster: cluster.servers_answer("metrics"), answer)


def _images(place: str, answer: Callable[[], Answer]) -> ControllerInput:
    return ControllerInput(lambda cluster: cluster.images(place), answer)


def page() -> bytes:
    """Metrics as long as they may be."""
    line = b'vllm:num_requests_waiting{a="b"} 1\n'
    return line * ((PAGE_BYTES - MIB // 16) // len(line))


INPUTS: Final[Mapping[str, ControllerInput]] = {
    **{name: _images(name, answer) for name, answer in REGISTRY_ANSWERS.items()},
    "bomb-metrics": _metrics(gzip_bomb),
    "endless-metrics": _metrics(lambda: endless),
    "huge-metrics": _metrics(lambda: document(page(), "text/plain")),
    "idle-connections": ControllerInput(Cluster.idle_connections),
}
