"""Removes what stays in a cluster after `helm uninstall`: Leases, NodeCaches, the peers' Secrets, definitions.

helm deletes neither what programs have created nor definitions and kept Secrets. Must not run beside agents or the
controller, which would create their objects again.
"""

from __future__ import annotations

from typing import Any, Final

from cache_agent.api.heartbeat import HEARTBEAT_SELECTOR
from modelimage.errors import InUse, NotFound
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.leader import LEASE_NAME
from workspace.controller.observation.observed import Reference

Json = dict[str, Any]

_OURS: Final = "app.kubernetes.io/name=weightyard"
_COMPONENT: Final = "app.kubernetes.io/component"
_KEPT: Final = "helm.sh/resource-policy"
_GROUP: Final = "weightyard.dev"


async def require_stopped(api: KubernetesApi, namespace: str) -> None:
    """Raises InUse while agents or the controller run in Weightyard's namespace."""
    for pod in await _list(api, "Pod", namespace=namespace, labels=_OURS):
        # The chart's hooks, of which one runs this, have the same name label and other components.
        if pod["metadata"]["labels"].get(_COMPONENT) in ("agent", "controller"):
            raise InUse(
                f"Weightyard still runs: {namespace}/{pod['metadata']['name']}",
                hint="Run `helm uninstall` first, then this again when its pods are gone.",
            )


async def remove_leftovers(
    api: KubernetesApi, namespace: str, *, definitions: bool
) -> tuple[str, ...]:
    """Deletes them and returns what was deleted, as Kind/name. Idempotent. `namespace` is Weightyard's.

    `definitions` deletes the CRDs too, and with them every Workspace and CachedModel.
    """
    secrets = await _list(api, "Secret", namespace=namespace, labels=_OURS)
    found = [
        *[each for each in [await _lease(api, namespace)] if each is not None],
        *await _list(api, "Lease", namespace=namespace, labels=HEARTBEAT_SELECTOR),
        *await _list(api, "NodeCache"),
        # Secrets without the annotation belong to the release, and helm deletes those itself.
        *[each for each in secrets if _KEPT in (each["metadata"].get("annotations") or {})],
    ]
    if definitions:
        kinds = await _list(api, "CustomResourceDefinition")
        found += [each for each in kinds if each["spec"]["group"] == _GROUP]
    return tuple([await _delete(api, each) for each in found])


async def _lease(api: KubernetesApi, namespace: str) -> Json | None:
    try:
        found = await api.get("Lease", namespace, LEASE_NAME)
    except NotFound:
        return None
    return {**found, "kind": "Lease"}


async def _list(
    api: KubernetesApi, kind: str, *, namespace: str | None = None, labels: str = ""
) -> list[Json]:
    try:
        pages = api.pages(kind, namespace=namespace, labels=labels)
        return [each async for page in pages for each in page]
    except NotFound:  # the kind is gone, with its objects
        return []


async def _delete(api: KubernetesApi, found: Json) -> str:
    kind, metadata = found["kind"], found["metadata"]
    reference = Reference(kind, metadata["name"])
    await api.delete(reference, metadata.get("namespace"), uid=metadata["uid"])
    return f"{kind}/{metadata['name']}"
