"""A Workspace in a real cluster, through kubectl's raw calls: made, changed, asked, watched, deleted."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests.servers.idle_clock import IdleClock

Json = dict[str, Any]
GROUP = "/apis/weightyard.dev/v1alpha1"
POLL_SECONDS = 0.5


class Refused(Exception):
    """kubectl's own words."""


class Cluster:
    """One namespace of a cluster. `minutes` bounds every wait, in the time that this machine has nothing to do."""

    def __init__(self, kubeconfig: str, namespace: str, *, minutes: float) -> None:
        self._kubeconfig = kubeconfig
        self._seconds = minutes * 60
        self.namespace = namespace

    @staticmethod
    def _document(text: str) -> Json:
        found: Json = json.loads(text)
        return found

    def path(self, kind: str, name: str = "", *, api: str = GROUP) -> str:
        return f"{api}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    def get(self, path: str) -> Json:
        return self._document(self._kubectl("get", path))

    def create(self, path: str, document: Json) -> Json:
        return self._document(self._kubectl("create", path, given=document))

    def replace(self, path: str, document: Json) -> Json:
        return self._document(self._kubectl("replace", path, given=document))

    def delete(self, path: str) -> None:
        self._kubectl("delete", path)

    def change(self, name: str, **spec: Any) -> None:
        """Change parts of a Workspace's spec; None takes one away. A conflict is tried again."""
        path = self.path("workspaces", name)
        while True:
            document = self.get(path)
            for part, value in spec.items():
                document["spec"].pop(part, None)
                if value is not None:
                    document["spec"][part] = value
            try:
                self.replace(path, document)
            except Refused as refused:
                if "Conflict" in str(refused):
                    continue
                raise
            return

    def within(self, namespace: str) -> Cluster:
        """The same cluster, in another namespace."""
        return Cluster(self._kubeconfig, namespace, minutes=self._seconds / 60)

    def wait(
        self, condition: Callable[[], object], *, what: str, seconds: float | None = None
    ) -> None:
        """Poll until a condition holds. Raises TimeoutError with what was waited for."""
        idle, limit = IdleClock(), seconds or self._seconds
        while not condition():
            if idle() > limit:
                raise TimeoutError(f"no {what} within {limit:g} s")
            time.sleep(POLL_SECONDS)

    def kubectl(self, *arguments: str, given: Json | None = None) -> str:
        """Run kubectl with a document as its input, and return what it says. Raises Refused."""
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self._kubeconfig}", *arguments],
            input=json.dumps(given) if given is not None else None,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Refused(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def items(self, *arguments: str) -> list[Json]:
        """What `kubectl get` finds, such as `items("pods", "-n", "team")`; none of a kind that isn't there."""
        try:
            found: Json = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        except Refused as refused:
            if "the server doesn't have a resource type" in str(refused):
                return []
            raise
        items: list[Json] = found["items"]
        return items

    def apply(self, document: Json) -> None:
        self.kubectl("apply", "-n", self.namespace, "-f", "-", given=document)

    def execute(self, pod: str, *command: str, container: str | None = None) -> str:
        """Run a command in a pod."""
        chosen = ("-c", container) if container else ()
        return self.kubectl("exec", "-n", self.namespace, pod, *chosen, "--", *command)

    def told(self, name: str) -> str:
        """The messages of all Events about an object of the namespace."""
        found = self.items(
            "events", "-n", self.namespace, f"--field-selector=involvedObject.name={name}"
        )
        return "\n".join(str(each.get("message", "")) for each in found)

    def _kubectl(self, verb: str, path: str, *, given: Json | None = None) -> str:
        return self.kubectl(
            verb, "--raw", path, *(() if given is None else ("-f", "-")), given=given
        )


class Workspace:
    """One Workspace of a cluster by its name."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    @property
    def document(self) -> Json:
        return self.cluster.get(self.cluster.path("workspaces", self.name))

    @property
    def status(self) -> Json:
        return self.document.get("status") or {}

    def condition(self, kind: str) -> Json:
        """A condition that speaks of the newest spec; empty before there is one."""
        document = self.document
        generation = document["metadata"]["generation"]
        found = (document.get("status") or {}).get("conditions") or ()
        return next(
            (c for c in found if c["type"] == kind and c["observedGeneration"] == generation), {}
        )

    def wait_ready(self) -> None:
        self.cluster.wait(lambda: self.condition("Ready").get("status") == "True", what="Ready")

    def deployment(self) -> Json:
        return self.cluster.get(self.cluster.path("deployments", self.name, api="/apis/apps/v1"))

    def pods(self, role: str, *, ending: bool = False) -> list[Json]:
        """Its pods of a role. Those that are being deleted, which may still answer, only with `ending`."""
        selector = (
            f"labelSelector=weightyard.dev/workspace%3D{self.name},weightyard.dev/role%3D{role}"
        )
        found = self.cluster.get(self.cluster.path("pods", api="/api/v1") + f"?{selector}")["items"]
        return [pod for pod in found if ending or "deletionTimestamp" not in pod["metadata"]]

    def wait_answers(self) -> None:
        """Until the server answers to the Workspace's name through its Service, whose endpoints follow the pods."""
        service = self.cluster.path("services", f"{self.name}:http", api="/api/v1")

        def answers() -> bool:
            try:
                found = self.cluster.get(f"{service}/proxy/v1/models")["data"]
            except Refused as refused:
                if "ServiceUnavailable" in str(refused):
                    return False
                raise
            return [each["id"] for each in found] == [self.name]

        self.cluster.wait(answers, what="answer under the Workspace's name")

    def is_gone(self) -> bool:
        paths = (
            self.cluster.path("workspaces", self.name),
            self.cluster.path("deployments", self.name, api="/apis/apps/v1"),
            self.cluster.path("services", self.name, api="/api/v1"),
        )
        return all(self._is_missing(path) for path in paths)

    def _is_missing(self, path: str) -> bool:
        try:
            self.cluster.get(path)
        except Refused as refused:
            return "NotFound" in str(refused)
        return False
