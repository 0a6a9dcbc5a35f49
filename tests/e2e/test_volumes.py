"""Models in pods by the driver: what pods are told when one can't be mounted, and what restarts do to them."""

from __future__ import annotations

import json
import shlex
import subprocess
import uuid

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.journey import Settings
from tests.e2e.readers import Reader, reading
from tests.e2e.release import Release

TAINT = "cache.weightyard.dev/starting"


@pytest.mark.timeout(0)
def test_a_pod_is_told_that_its_image_does_not_exist(
    release: Release, cluster: Cluster, settings: Settings
) -> None:
    with reading(release, cluster, f"{settings.model}-missing") as reader:
        reader.wait_told("code = NotFound")


@pytest.mark.timeout(0)
def test_a_pod_is_told_that_its_registry_is_not_allowed(release: Release, cluster: Cluster) -> None:
    with reading(release, cluster, "registry.invalid/team/model:v1") as reader:
        reader.wait_told("code = PermissionDenied")


@pytest.mark.timeout(0)
def test_a_pod_reads_on_while_its_agent_is_replaced(
    release: Release, cluster: Cluster, reader: Reader, settings: Settings
) -> None:
    """The new agent knows it, serves others, and takes its volume away at the end."""
    node = reader.node
    gone = release.agent_on(node)
    release.cluster.kubectl("delete", "pod", gone, "-n", release.cluster.namespace, "--wait")
    reader.read()
    release.cluster.wait(
        lambda: any(release.is_ready(pod) for pod in agents_on(release, node)), what="a new agent"
    )
    name = f"{cluster.namespace}/{reader.name}"
    said = release.cluster.execute(
        release.agent_on(node), "weightyard", "--json", "explain", name, container="agent"
    )
    assert [each["subject"] for each in json.loads(said)] == [f"pod {name}"]
    with reading(release, cluster, settings.model, node=node) as another:
        another.wait()
    reader.read()


@pytest.mark.timeout(0)
def test_a_pod_reads_on_while_every_agent_is_rolled(
    release: Release, reader: Reader, cluster: Cluster, settings: Settings
) -> None:
    release.upgrade("--set-string", f"agent.podAnnotations.e2e={uuid.uuid4().hex[:8]}")
    reader.read()
    with reading(release, cluster, settings.model, node=reader.node) as another:
        another.wait()


@pytest.mark.timeout(0)
def test_a_pod_reads_on_while_its_kubelet_restarts(
    release: Release, cluster: Cluster, reader: Reader, settings: Settings,
    pytestconfig: pytest.Config,
) -> None:  # fmt: skip
    command = pytestconfig.getoption("--restart-kubelet")
    if not command:
        pytest.skip("--restart-kubelet names no command")
    node = reader.node
    subprocess.run(shlex.split(command.format(node=node)), check=True)
    reader.wait_reads()
    with reading(release, cluster, settings.model, node=node) as another:
        another.wait()
    reader.read()


@pytest.mark.timeout(0)
def test_a_node_loses_its_startup_taint_when_its_models_are_there(
    release: Release, cluster: Cluster, reader: Reader
) -> None:
    """A new node registers with it; the controller takes it away."""
    node = reader.node
    cluster.kubectl("taint", "node", node, f"{TAINT}=:NoSchedule")

    def tainted() -> bool:
        spec = cluster.get(f"/api/v1/nodes/{node}")["spec"]
        return any(each["key"] == TAINT for each in spec.get("taints", ()))

    cluster.wait(lambda: not tainted(), what="node without the startup taint")


def agents_on(release: Release, node: str) -> list[str]:
    return [
        pod["metadata"]["name"]
        for pod in release.pods("agent")
        if pod["spec"].get("nodeName") == node
    ]
