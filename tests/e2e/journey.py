"""The life of a Workspace, step by step: created, pre-warmed, ready, asked, scaled, renewed, taken back, deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.e2e.cluster import Cluster, Workspace
from weightyard.cli import main

Json = dict[str, Any]
IDLE_SECONDS = 10


@dataclass(frozen=True)
class Settings:
    """What differs from cluster to cluster."""

    kubeconfig: str
    namespace: str
    model: str
    next_model: str
    runtime_image: str | None = None
    gpus: int | None = None
    gpu: str | None = None
    minutes: float = 20


def document(settings: Settings, name: str) -> Json:
    runtime = {"image": settings.runtime_image} if settings.runtime_image else {}
    resources = {"gpus": settings.gpus, "gpu": settings.gpu}
    return {
        "apiVersion": "weightyard.dev/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name, "namespace": settings.namespace},
        "spec": {
            "model": {"image": settings.model},
            "runtime": runtime,
            "resources": {k: v for k, v in resources.items() if v is not None},
            "replicas": 1,
        },
    }


def travel(settings: Settings, name: str, *more: Callable[[Workspace], None]) -> None:
    """Every step, each checked, and `more` of them at the end. Raises AssertionError, TimeoutError or Refused."""
    cluster = Cluster(settings.kubeconfig, settings.namespace, minutes=settings.minutes)
    workspace = Workspace(cluster, name)
    cluster.create(cluster.path("workspaces"), document(settings, name))
    try:
        becomes_ready(workspace)
        scales(workspace)
        rolls_and_goes_back(workspace, settings)
        for step in more:
            step(workspace)
    finally:
        cluster.delete(cluster.path("workspaces", name))
    cluster.wait(workspace.is_gone, what="end of everything it made")


def becomes_ready(workspace: Workspace) -> None:
    """No server before the model is cached; then one that answers under its name."""
    wait = workspace.cluster.wait
    wait(lambda: workspace.condition("ModelResolved").get("status") == "True", what="ModelResolved")
    wait(lambda: workspace.condition("Cached").get("reason"), what="word of the cache")
    replicas = workspace.deployment()["spec"]["replicas"]
    if workspace.condition("Cached")["reason"] == "Fetching":
        assert replicas == 0, "a GPU was asked for before any node held the model"
    workspace.wait_ready()
    assert workspace.status["readyReplicas"] == 1
    workspace.wait_answers()


def scales(workspace: Workspace) -> None:
    """To none and back to one."""
    cluster = workspace.cluster
    cluster.change(workspace.name, replicas=0)
    cluster.wait(lambda: workspace.pods("server") == [], what="end of the servers")
    cluster.change(workspace.name, replicas=1)
    workspace.wait_ready()


def sleeps_and_wakes(workspace: Workspace) -> None:
    """To zero by its autoscaler's settings; the first request starts a server and is answered by it.

    Takes servers that run, with metrics, and an activator.
    """
    cluster = workspace.cluster
    scale = {"min": 0, "max": 1, "downWindowSeconds": IDLE_SECONDS}
    cluster.change(workspace.name, replicas=None, scale=scale)
    # Until it is gone: one that ends still answers what reaches it.
    cluster.wait(lambda: workspace.pods("server", ending=True) == [], what="end of the idle server")
    workspace.wait_ready()
    workspace.wait_answers()
    assert workspace.pods("server")


def rolls_and_goes_back(workspace: Workspace, settings: Settings) -> None:
    """A new version takes over without a moment when none answers; undo brings back the same bytes."""
    cluster, first = workspace.cluster, workspace.status["image"]
    cluster.change(workspace.name, model={"image": settings.next_model})

    def rolled() -> bool:
        assert workspace.status["readyReplicas"] >= 1
        return workspace.condition("Ready").get("status") == "True"

    cluster.wait(rolled, what="Ready of the new version")
    second = workspace.status["image"]
    assert second != first
    undo = [
        "rollout",
        "undo",
        workspace.name,
        "-n",
        settings.namespace,
        "--kubeconfig",
        settings.kubeconfig,
    ]
    assert main(undo) == 0
    cluster.wait(
        lambda: (
            workspace.condition("Ready").get("status") == "True"
            and workspace.status["image"] == first
        ),
        what="the first version again",
    )
    workspace.wait_answers()
