"""Pods that pre-warm a version on a node before any GPU is held: same volume, same image, no GPU, no work.

Works the same for public and private models: the pod is in the Workspace's namespace, where its pull secret is, and an
owner reference deletes it. It uses the server's image, which is thereby pulled too, and its volume leases the model
until the server has its own.
"""

from __future__ import annotations

import hashlib
from typing import Any

from workspace.controller.observation.objects import has_ended, is_mounted
from workspace.controller.observation.revisions import Revision
from workspace.render import names
from workspace.render.containers import without_gpus
from workspace.render.routing import meta
from workspace.render.spec_template import PLACING
from workspace.schema import Workspace

Json = dict[str, Any]


def pod_name(workspace: Workspace, revision: Revision, node: str) -> str:
    # From version and node alone, so that a pass which repeats another makes no second pod.
    digest = hashlib.sha256(f"{revision.name}/{node}".encode()).hexdigest()
    return f"{workspace.name}-warm-{digest[:8]}"


def prewarm_pod(
    workspace: Workspace, revision: Revision, node: str, *, uid: str | None = None
) -> Json:
    """A pod that makes a node hold a version for as long as the pod exists."""
    spec = revision.template["spec"]
    server = next(each for each in spec["containers"] if each["name"] == names.SERVER_CONTAINER)
    wanted = [each for each in spec["volumes"] if "csi" in each]
    held = {each["name"] for each in wanted}
    metadata = meta(workspace, pod_name(workspace, revision, node), names.PREWARM, uid)
    metadata["labels"] |= {names.REVISION: revision.id}
    # A namespace with a quota refuses pods that don't state them.
    small = {"cpu": "10m", "memory": "32Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "serviceAccountName": spec["serviceAccountName"],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": spec["securityContext"],
            # As process 1, sleep ignores SIGTERM.
            "terminationGracePeriodSeconds": 1,
            "restartPolicy": "Never",
            "affinity": _on(node),
            # Where the server may run, and before whom: it waits for this pod.
            **{field: spec[field] for field in PLACING if field in spec},
            "tolerations": spec.get("tolerations", []),
            "imagePullSecrets": spec.get("imagePullSecrets", []),
            "containers": [
                {
                    "name": names.PREWARM,
                    "image": server["image"],
                    **{field: server[field] for field in ("imagePullPolicy",) if field in server},
                    **_without_gpus(spec),
                    # An image without `sleep` fails to start, but only after the volume was
                    # mounted.
                    "command": ["sleep", "infinity"],
                    "resources": {"requests": small, "limits": small},
                    "securityContext": server["securityContext"],
                    "volumeMounts": [m for m in server["volumeMounts"] if m["name"] in held],
                }
            ],
            "volumes": wanted,
        },
    }


def is_spent(document: Json) -> bool:
    """Whether a pre-warm pod ended before it had its volume (evicted, node lost) and must be replaced."""
    if document["kind"] != "Pod":
        return False
    return has_ended(document) and not is_mounted(document)


def _without_gpus(spec: Json) -> Json:
    """Keeps NVIDIA's runtime, if that is the class, from giving it all GPUs, as images of servers ask for."""
    if "runtimeClassName" not in spec:
        return {}
    return {"env": without_gpus()}


def _on(node: str) -> Json:
    """Affinity to one node. It goes through the scheduler: spec.nodeName would skip taints and free resources."""
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    required = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
