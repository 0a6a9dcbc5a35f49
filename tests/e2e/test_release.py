"""The release works: its own test, what the doctor says, and a leader that goes."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.cluster import Cluster, Workspace
from tests.e2e.journey import Settings, document
from tests.e2e.release import Release
from weightyard.cli import main

LEASE = "weightyard-controller"
SECONDS = 10.0


@pytest.mark.timeout(0)
def test_the_charts_own_test_pulls_through_an_agent(release: Release) -> None:
    assert "Succeeded" in release.test()


@pytest.mark.timeout(0)
def test_the_doctor_finds_nothing_wrong(
    release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", release.kubeconfig)
    options = ("--selector=", "--min-free=1%", "--disk-trial=16MB")
    command = ["doctor", "--cluster", f"--namespace={release.cluster.namespace}", *options]
    assert main(command) == 0, capsys.readouterr().out


@pytest.mark.timeout(0)
def test_another_controller_leads_when_the_leader_is_deleted(
    release: Release, cluster: Cluster, settings: Settings
) -> None:
    """What is created meanwhile is taken up at once."""
    before = leader(release)
    release.cluster.kubectl(
        "delete", "pod", before, "-n", release.cluster.namespace, "--wait=false"
    )
    workspace = Workspace(cluster, f"e2e-{uuid.uuid4().hex[:8]}")
    cluster.create(cluster.path("workspaces"), document(settings, workspace.name))
    try:
        cluster.wait(
            lambda: workspace.condition("ModelResolved"), what="status by a new leader",
            seconds=SECONDS,
        )  # fmt: skip
        assert leader(release) != before
    finally:
        cluster.delete(cluster.path("workspaces", workspace.name))
    cluster.wait(workspace.is_gone, what="end of everything it made")
    release.wait()


def leader(release: Release) -> str:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{release.cluster.namespace}/leases/{LEASE}"
    holder = str(release.cluster.get(path)["spec"]["holderIdentity"])
    # The pod's name, and what tells its processes apart.
    return holder.rpartition("_")[0] or holder
