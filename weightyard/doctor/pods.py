"""Gathers facts on a cluster's nodes: a short-lived pod on each prints the facts that its doctor gathers.

Pods have a common label, so that a run removes the pods that a killed run left. `manifest` is pure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from modelimage.errors import NotFound
from weightyard.doctor.facts import HostFacts
from weightyard.kubectl import Kubectl

Json = dict[str, Any]
LABEL: Final = "app.kubernetes.io/component"
COMPONENT: Final = "weightyard-doctor"
_ENDED: Final = ("Succeeded", "Failed")
_POLL_SECONDS: Final = 1.0
_API: Final = "https://kubernetes.default.svc/livez"


@dataclass(frozen=True, slots=True)
class PodProbe:
    """A probe pod's settings: `store` and `kubelet` are node directories, `trial` the bytes of the disk trial."""

    namespace: str
    image: str
    store: str
    kubelet: str
    trial: int
    seconds: int


def manifest(probe: PodProbe, node: str, name: str) -> Json:
    """The pod for one node. It can read the node's root, and write only below the cache's directory."""
    arguments = [
        "--json", "doctor", "--facts", f"--root={probe.store}", f"--kubelet={probe.kubelet}", "--host=/host",
        f"--disk-trial={probe.trial}", f"--api={_API}", "--api-ca=/etc/weightyard-api/ca.crt",
    ]  # fmt: skip
    container = {
        "name": "doctor",
        "image": probe.image,
        "args": arguments,
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}
        },
        # Root, since kubelet's and containerd's configuration and a new cache directory belong to
        # root.
        "securityContext": {
            "runAsUser": 0, "runAsNonRoot": False, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
        },
        "volumeMounts": [
            {"name": "host", "mountPath": "/host", "readOnly": True},
            {"name": "kubelet", "mountPath": probe.kubelet, "readOnly": True, "mountPropagation": "HostToContainer"},
            {"name": "store", "mountPath": probe.store},
            {"name": "api", "mountPath": "/etc/weightyard-api", "readOnly": True},
        ],
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": probe.namespace,
            "labels": {LABEL: COMPONENT, "app.kubernetes.io/part-of": "weightyard"},
        },
        "spec": {
            # Set directly: the scheduler would refuse nodes that are full or cordoned.
            "nodeName": node,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": probe.seconds,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            # `nodeName` passes by the scheduler, but a NoExecute taint would still end the pod.
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [
                {"name": "host", "hostPath": {"path": "/", "type": "Directory"}},
                {"name": "kubelet", "hostPath": {"path": probe.kubelet, "type": "Directory"}},
                {"name": "store", "hostPath": {"path": probe.store, "type": "DirectoryOrCreate"}},
                {"name": "api", "configMap": {"name": "kube-root-ca.crt", "optional": True}},
            ],
        },
    }  # fmt: skip


@dataclass
class Probing:
    """One run over some nodes. `run` distinguishes runs; clock and sleep are injected."""

    cluster: Kubectl
    probe: PodProbe
    run: str
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _made: dict[str, str] = field(default_factory=dict)

    def gather(self, nodes: Iterable[str]) -> Mapping[str, HostFacts | str]:
        """Each node's facts, or the reason why there are none. All pods are deleted afterwards, in every case."""
        found: dict[str, HostFacts | str] = {}
        self._sweep()
        try:
            for number, node in enumerate(nodes):
                name = f"weightyard-doctor-{self.run}-{number}"
                self.cluster.create(self._path(), manifest(self.probe, node, name))
                self._made[name] = node
            for name, pod in self._ended():
                found[self._made[name]] = self._told(name, pod)
            for name, node in self._made.items():
                if node not in found:
                    found[node] = self._silent(name)
        finally:
            for name in self._made:
                self.cluster.delete(self._path(name))
        return found

    def _sweep(self) -> None:
        """Deletes ended pods of an earlier, killed run."""
        for pod in self._list():
            # Only ended pods: running ones may belong to another run, and end by their deadline.
            if pod.get("status", {}).get("phase") in _ENDED:
                self.cluster.delete(self._path(pod["metadata"]["name"]))

    def _ended(self) -> Iterator[tuple[str, Json]]:
        """Yields our pods as they end, until all have ended or the time is up."""
        waiting, until = set(self._made), self.clock() + self.probe.seconds
        while waiting:
            for pod in self._list():
                name = pod["metadata"]["name"]
                if name in waiting and pod.get("status", {}).get("phase") in _ENDED:
                    waiting.discard(name)
                    yield name, pod
            # After a look, so that a pod that ended in the last interval still counts.
            if waiting and self.clock() > until:
                return
            if waiting:
                self.sleep(_POLL_SECONDS)

    def _told(self, name: str, pod: Json) -> HostFacts | str:
        """The facts that a pod printed, or its error."""
        try:
            # The last line: libraries of the image may print warnings before it.
            lines = self.cluster.text(self._path(name) + "/log?container=doctor").splitlines()
            return HostFacts.model_validate_json(lines[-1] if lines else "")
        except NotFound as error:
            return error.message
        except ValidationError:
            status = pod.get("status", {})
            said = status.get("message") or (lines[-1] if lines else status.get("reason"))
            return f"the pod ended as {status.get('phase')}: {said or 'it printed nothing'}"

    def _silent(self, name: str) -> str:
        """Why a pod hasn't ended: its container's state and its last event."""
        try:
            pod = self.cluster.get(self._path(name))
        except NotFound:
            return "the pod was removed"
        states = pod.get("status", {}).get("containerStatuses") or ()
        reason = next(
            (
                s["state"]["waiting"].get("reason")
                for s in states
                if "waiting" in s.get("state", {})
            ),
            None,
        )
        events = f"/api/v1/namespaces/{self.probe.namespace}/events?fieldSelector=involvedObject.name%3D{name}"
        messages = [
            str(each.get("message", "")) for each in self.cluster.get(events).get("items", ())
        ]
        seen = (
            ": ".join(filter(None, [reason, messages[-1] if messages else None]))
            or "no state was reported"
        )
        return f"the pod didn't end within {self.probe.seconds} s: {seen}"  # fmt: skip

    def _list(self) -> list[Json]:
        found = self.cluster.get(f"{self._path()}?labelSelector={LABEL}%3D{COMPONENT}")
        return list(found.get("items", ()))

    def _path(self, name: str = "") -> str:
        base = f"/api/v1/namespaces/{self.probe.namespace}/pods"
        return f"{base}/{name}" if name else base
