"""Deployments in a namespace of a cluster: Workspaces, through kubectl. The controller serves them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from urllib.parse import quote

from modelimage.errors import (
    AccessDenied,
    Busy,
    EngineFailed,
    InvalidInput,
    NotFound,
    TimedOut,
    Unreachable,
    WeightyardError,
)
from weightyard.console import Console
from weightyard.kubectl import Kubectl
from weightyard.mlflow_deployments.backend import Endpoint, served_name
from weightyard.mlflow_deployments.deployment_errors import AlreadyExists, NotServing
from weightyard.mlflow_deployments.documents import Found, Json
from weightyard.mlflow_deployments.verdict import PATIENCE, Judge, Verdict, ready_condition
from workspace.render.kubernetes import CLIENT_PORT

_GROUP: Final = "/apis/weightyard.dev/v1alpha1"
_POLL_SECONDS: Final = 2.0
_TRIES: Final = 20  # of a write that the controller's own come before
_log = logging.getLogger(__name__)


class ClusterBackend:
    """The Workspaces of one namespace; None is that of kubectl's context."""

    def __init__(
        self,
        cluster: Kubectl,
        namespace: str | None,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cluster = cluster
        self._console = console
        self._clock, self._sleep = clock, sleep
        self.namespace: str | None = namespace or cluster.namespace()

    def find(self, name: str) -> Found | None:
        for each in self.all():
            if each.document["metadata"]["name"] == name:
                return each
        # A list of a namespace that is missing is empty, too.
        self._check_namespace()
        return None

    def all(self) -> list[Found]:
        # Listed, for one of them too: a missing object, a missing kind and a missing namespace are told apart so.
        try:
            listed = self._cluster.get(self._path())["items"]
        except NotFound as error:
            raise InvalidInput(
                "this cluster has no Workspaces", hint="Install Weightyard's chart: weightyard help cluster."
            ) from error  # fmt: skip
        return [_found(each) for each in listed]

    def apply(self, document: Json, previous: Json | None, *, timeout: float | None) -> None:
        name = document["metadata"]["name"]
        try:
            written = self._write(document, previous)
        except Busy as error:
            if previous is None:
                raise _taken(name, self.namespace) from error
            raise
        try:
            self._wait(name, int(written["metadata"].get("generation") or 1), timeout)
        except KeyboardInterrupt:
            _log.warning(
                "%s goes on in %s without being waited for: `mlflow deployments get` shows how it stands, and an "
                "update waits for it again.", name, self.namespace,
            )  # fmt: skip
            raise

    def remove(self, name: str) -> None:
        self._cluster.delete(self._path(name))

    @contextmanager
    def reach(self, name: str) -> Iterator[Endpoint]:
        found = self._cluster.get(self._path(name))
        with ExitStack() as stack:
            forward = self._cluster.forward(str(self.namespace), f"service/{name}", CLIENT_PORT)
            try:
                address = stack.enter_context(forward)
            except (Unreachable, EngineFailed) as error:
                # kubectl waits for a pod that runs, and says then only that its time is over.
                raise type(error)(
                    f"{name} can't be reached: {error.message}",
                    hint="`mlflow deployments get` shows how it stands.",
                ) from error
            yield Endpoint(f"http://{address}", served_name(found))

    def _check_namespace(self) -> None:
        """Raises NotFound for a namespace that isn't there, where that may be asked."""
        try:
            self._cluster.get(f"/api/v1/namespaces/{self.namespace}")
        except AccessDenied:
            return  # who may only use the namespace learns it from the Workspace
        except NotFound as error:
            hint = f"Create it: kubectl create namespace {self.namespace}."
            if self.namespace == "local":
                hint += " This machine is weightyard:/local."
            raise NotFound(f"there is no namespace {self.namespace}", hint=hint) from error

    def _write(self, document: Json, previous: Json | None) -> Json:
        if previous is None:
            return self._cluster.create(self._path(), document)
        if document == previous:
            return previous
        return self._replace(document, previous)

    def _replace(self, document: Json, previous: Json) -> Json:
        """With the resourceVersion that was read: somebody else's edit meanwhile makes it fail, and isn't lost."""
        path = self._path(document["metadata"]["name"])
        for _ in range(_TRIES):
            try:
                return self._cluster.replace(path, document)
            except Busy:
                current = self._cluster.get(path)
                if _asked(current) != _asked(previous):
                    raise
            # Only its status was written, as the controller does at any time.
            version = current["metadata"]["resourceVersion"]
            document = {
                **document,
                "metadata": {**document["metadata"], "resourceVersion": version},
            }
        return self._cluster.replace(path, document)

    def _wait(self, name: str, generation: int, timeout: float | None) -> None:
        """Until it serves. Progress is told as it changes; a cluster that doesn't answer is asked again for a while."""
        judge, began, answered, told = Judge(generation), self._clock(), self._clock(), ""
        while True:
            try:
                verdict = judge.judge(self._cluster.get(self._path(name)), self._clock())
                answered = self._clock()
            except NotFound as error:
                raise NotServing(f"{name} was deleted while it was waited for") from error
            except WeightyardError as error:
                if not error.retry or self._clock() - answered >= PATIENCE:
                    raise
                verdict = Verdict(error.kind, error.message)
            if verdict.done:
                return
            if verdict.failed:
                raise _failure(name, verdict, self.namespace)
            if str(verdict) != told:
                told = str(verdict)
                self._console.say(f"{name}: {told}")
            if timeout is not None and self._clock() - began >= timeout:
                raise TimedOut(
                    f"{name} doesn't serve after {timeout:g} s: {verdict}",
                    hint="It stays, and may come up yet: an update waits for it again.",
                )
            self._sleep(_POLL_SECONDS)

    def _path(self, name: str = "") -> str:
        path = f"{_GROUP}/namespaces/{self.namespace}/workspaces"
        return f"{path}/{quote(name, safe='')}" if name else path


def _found(item: Json) -> Found:
    """A Workspace of a list, whose items lack what the list has, and how it stands."""
    document = {"apiVersion": "weightyard.dev/v1alpha1", "kind": "Workspace", **item}
    condition = ready_condition(document) or {}
    ready = condition.get("status") == "True"
    status: Json = document.get("status") or {}
    facts: dict[str, Any] = {
        "namespace": document["metadata"].get("namespace", ""),
        "variant": status.get("variant", ""),
        "replicas": status.get("replicas", 0),
        "ready_replicas": status.get("readyReplicas", 0),
    }
    state = "Ready" if ready else str(condition.get("reason") or "Unknown")
    return Found(
        document, state, str(condition.get("message", "")), str(status.get("url", "")), facts
    )


def _asked(document: Json) -> tuple[Any, ...]:
    """What people ask for by a Workspace, and not how it stands."""
    metadata = document["metadata"]
    return document["spec"], metadata.get("labels"), metadata.get("annotations")


def _taken(name: str, namespace: str | None) -> AlreadyExists:
    return AlreadyExists(
        f"{namespace} has a Workspace {name} already", hint="Update it, or take another name."
    )


def _failure(name: str, verdict: Verdict, namespace: str | None) -> NotServing:
    return NotServing(
        f"{name} doesn't serve: {verdict}",
        hint=f"It stays for a look: weightyard explain {name} -n {namespace}. Repair it by an update, or delete it.",
    )
