"""A CachedModel in a real cluster: wanted, fetched, labelled, told, and no longer wanted."""

from __future__ import annotations

from typing import Any

from tests.e2e.cluster import GROUP, Cluster, Refused

Json = dict[str, Any]
LABELS = "cache.weightyard.dev/m."


def warm(cluster: Cluster, name: str, image: str, selector: dict[str, str]) -> None:
    """Every step, each checked. Raises AssertionError, TimeoutError or Refused."""
    path = f"{GROUP}/cachedmodels/{name}"
    cluster.create(f"{GROUP}/cachedmodels", _document(name, image, selector))
    try:
        cluster.wait(lambda: _condition(cluster, path, "Ready") == "True", what="Ready")
        _check_status(cluster.get(path))
        _check_nodes(cluster, name)
        cluster.wait(lambda: "Cached" in _events(cluster, name), what="Event")
    finally:
        cluster.delete(path)
    cluster.wait(lambda: _is_gone(cluster, path), what="end of the CachedModel")


def _document(name: str, image: str, selector: dict[str, str]) -> Json:
    return {
        "apiVersion": "weightyard.dev/v1alpha1",
        "kind": "CachedModel",
        "metadata": {"name": name},
        "spec": {"image": image, **({"nodeSelector": selector} if selector else {})},
    }


def _condition(cluster: Cluster, path: str, kind: str) -> str:
    """A condition that speaks of the newest spec."""
    document = cluster.get(path)
    generation = document["metadata"]["generation"]
    found = (document.get("status") or {}).get("conditions") or ()
    return next(
        (c["status"] for c in found if c["type"] == kind and c["observedGeneration"] == generation), ""
    )  # fmt: skip


def _check_status(document: Json) -> None:
    status = document["status"]
    assert status["percent"] == 100
    assert status["nodesReady"] == status["nodesDesired"] >= 1
    assert status["modelKey"].startswith("sha256:")


def _check_nodes(cluster: Cluster, name: str) -> None:
    """Every node whose agent has it carries its label, with its name beside."""
    key = cluster.get(f"{GROUP}/cachedmodels/{name}")["status"]["modelKey"]
    label = LABELS + key.removeprefix("sha256:")[:12]
    caches = cluster.get(f"{GROUP}/nodecaches")["items"]
    holding = [
        cache["metadata"]["name"]
        for cache in caches
        if any(held["key"] == key for held in cache["status"].get("models", ()))
    ]
    assert holding

    def labelled() -> bool:
        nodes = [cluster.get(f"/api/v1/nodes/{node}")["metadata"] for node in holding]
        return all(
            (node.get("labels") or {}).get(label) == "ready"
            and (node.get("annotations") or {}).get(label, "").startswith(key)
            for node in nodes
        )

    cluster.wait(labelled, what="labels")


def _events(cluster: Cluster, name: str) -> list[str]:
    """The reasons of Events about it; objects without a namespace have theirs in `default`."""
    found = cluster.get("/api/v1/namespaces/default/events")["items"]
    return [each["reason"] for each in found if each["involvedObject"].get("name") == name]


def _is_gone(cluster: Cluster, path: str) -> bool:
    try:
        cluster.get(path)
    except Refused as refused:
        return "NotFound" in str(refused)
    return False
