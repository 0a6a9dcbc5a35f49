"""The end-to-end suite itself, on the simulated cluster with a running controller: what it asks for does happen."""

from __future__ import annotations

import pytest

from tests.e2e.cluster import Cluster as E2eCluster
from tests.e2e.journey import Settings, travel
from tests.e2e.prewarming import warm
from tests.workspace.controller.living import ServedCluster, point_kubectl_at
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster


@pytest.mark.slow
def test_the_journey_of_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    for name in ("n1", "n2"):
        cluster.add_node(name)
    settings = Settings(
        kubeconfig="ignored",
        namespace=NAMESPACE,
        model="registry.example/team/tiny:v1",
        next_model="registry.example/team/tiny:v2",
        gpu="L4",
        minutes=1,
    )
    with ServedCluster(cluster, alive=True) as url:
        point_kubectl_at(url, monkeypatch)
        travel(settings, NAME)
    left = {kind for kind, _, _ in cluster.api.objects}
    # The definition is KEDA's.
    assert left <= {"Node", "Pod", "Event", "CustomResourceDefinition"}


@pytest.mark.slow
def test_the_journey_of_a_cached_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    for name in ("n1", "n2"):
        cluster.add_node(name)
    with ServedCluster(cluster, alive=True) as url:
        point_kubectl_at(url, monkeypatch)
        warm(
            E2eCluster("ignored", NAMESPACE, minutes=1), "tiny", "registry.example/team/tiny:v1", {}
        )
