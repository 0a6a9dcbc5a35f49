"""A CachedModel's life in the cluster of `--kubeconfig`: wanted, held by nodes that are labelled, released."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.cluster import GROUP, Cluster, Json, Refused
from tests.e2e.journey import Settings
from weightyard.cli import main


@pytest.mark.timeout(0)
def test_a_cached_model_is_held_by_labelled_nodes(cluster: Cluster, settings: Settings) -> None:
    kubeconfig = ("--kubeconfig", settings.kubeconfig)
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    command = ["prewarm", settings.model, "--name", name, *kubeconfig]
    try:
        seconds = str(settings.minutes * 60)
        assert main([*command, "--wait", "--timeout", seconds]) == 0
        holds(cluster, name)
        assert main(["status", name, *kubeconfig]) == 0
    finally:
        assert main([*command, "--remove"]) == 0
    cluster.wait(lambda: is_gone(cluster, name), what="end of the CachedModel")


def holds(cluster: Cluster, name: str) -> None:
    """Its conditions speak of the newest spec, and the nodes that report it are labelled."""
    model = cluster.get(f"{GROUP}/cachedmodels/{name}")
    (ready,) = [c for c in model["status"]["conditions"] if c["type"] == "Ready"]
    assert ready["status"] == "True"
    assert ready["observedGeneration"] == model["metadata"]["generation"]
    label = f"cache.weightyard.dev/m.{model['status']['modelKey'].removeprefix('sha256:')[:12]}"
    nodes = [
        cache["metadata"]["name"]
        for cache in cluster.get(f"{GROUP}/nodecaches")["items"]
        if any(each["name"] == name for each in cache["status"].get("desired", ()))
    ]
    assert nodes
    for node in nodes:
        cluster.wait(
            lambda at=node: labels(cluster, at).get(label) == "ready", what=f"label on {node}"
        )


def labels(cluster: Cluster, node: str) -> Json:
    found: Json = cluster.get(f"/api/v1/nodes/{node}")["metadata"]["labels"]
    return found


def is_gone(cluster: Cluster, name: str) -> bool:
    try:
        cluster.get(f"{GROUP}/cachedmodels/{name}")
    except Refused as refused:
        return "NotFound" in str(refused)
    return False
