"""A pod that has a model as its volume and reads it, as restricted as pods can be."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.e2e.cluster import Cluster, Refused
from tests.e2e.release import Release

Json = dict[str, Any]
_WAIT = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); signal.pause()"
_READ = """
import hashlib, pathlib
files = [each for each in pathlib.Path('/model').rglob('*') if each.is_file()]
print(len([hashlib.sha256(each.read_bytes()) for each in files]))
"""


@dataclass(frozen=True)
class Reader:
    """One such pod. `cluster` is in its namespace."""

    cluster: Cluster
    name: str

    @property
    def pod(self) -> Json:
        return self.cluster.get(self.cluster.path("pods", self.name, api="/api/v1"))

    @property
    def node(self) -> str:
        return str(self.pod["spec"]["nodeName"])

    def is_ready(self) -> bool:
        conditions = self.pod.get("status", {}).get("conditions", ())
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def wait(self) -> None:
        self.cluster.wait(self.is_ready, what=f"running {self.name}")
        self.read()

    def read(self) -> None:
        """Reads every file of the model, in the pod."""
        assert int(self.cluster.execute(self.name, "python", "-c", _READ)) > 1

    def wait_reads(self) -> None:
        """Until the pod can be asked again, as after its kubelet restarted; then it has read on with no restart."""

        def answers() -> bool:
            try:
                self.read()
            except Refused as refused:
                # Said before a kubelet has found its pods again, or while it is away.
                if any(each in str(refused) for each in ("pod does not exist", "dial tcp", "EOF")):
                    return False
                raise
            return True

        self.cluster.wait(answers, what=f"{self.name} that reads")
        (status,) = self.pod["status"]["containerStatuses"]
        assert status["restartCount"] == 0

    def wait_told(self, words: str) -> None:
        """Until kubelet or the agent says so in the pod's Events."""
        self.cluster.wait(lambda: words in self.cluster.told(self.name), what=f"Event with {words}")


@contextlib.contextmanager
def reading(
    release: Release, cluster: Cluster, image: str, *, secret: str | None = None, node: str | None = None,
) -> Iterator[Reader]:  # fmt: skip
    """The pod exists while the context lasts. It may be on any node, or on one."""
    reader = Reader(cluster, f"reader-{uuid.uuid4().hex[:8]}")
    cluster.create(
        cluster.path("pods", api="/api/v1"), _document(release, reader.name, image, secret, node)
    )
    try:
        yield reader
    finally:
        cluster.kubectl("delete", "pod", reader.name, "-n", cluster.namespace, "--wait")


def _document(
    release: Release, name: str, image: str, secret: str | None, node: str | None
) -> Json:
    csi: Json = {
        "driver": "cache.weightyard.dev", "readOnly": True, "volumeAttributes": {"image": image},
        **({"nodePublishSecretRef": {"name": secret}} if secret else {}),
    }  # fmt: skip
    agent = release.pods("agent")[0]["spec"]
    container = {
        "name": "reader",
        "image": agent["containers"][0]["image"],
        "command": ["python", "-c", _WAIT],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "model", "mountPath": "/model", "readOnly": True}],
    }
    spec: Json = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "model", "csi": csi}],
        **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
    }  # fmt: skip
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
