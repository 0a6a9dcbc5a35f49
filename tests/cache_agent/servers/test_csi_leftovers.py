"""What dead pods leave behind, and where pods are looked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cache_agent.config.settings_file import parse_config
from cache_agent.daemon.node_setup import NodeParts
from cache_agent.store.values import Holder, HolderKind
from modelimage.access import Access
from tests.cache_agent.servers.machine import Machine
from tests.cache_agent.servers.published import publish_model
from tests.servers.registry import DockerRegistry

POD = Holder(HolderKind.POD, "u-1")


@pytest.mark.servers
def test_what_a_dead_pod_left_is_cleaned_and_a_living_one_keeps_its_lease(
    machine: Machine, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    """kubelet forced a pod off the node while the driver was away, and told it nothing."""
    image = f"{registry.host}/{unique_name('left')}:v1"
    publish_model(image, seed=58)
    target = machine.kubelet.publish("pod-dead", image)
    machine.kubelet.publish("pod-alive", image)
    machine.mounter.client.unbind(target)
    machine.kubelet.forget("pod-dead")
    machine.restart()
    machine.agent.node.store.first.leases.expire()
    assert machine.leases() == ["pod:pod-alive"]
    assert len(machine.mounter.mounts()) == 1
    machine.kubelet.unpublish("pod-dead", target)  # kubelet may come back to it all the same
    assert machine.leases() == ["pod:pod-alive"]


def test_pods_are_looked_for_where_kubelet_has_them(tmp_path: Path) -> None:
    config = parse_config(
        f"servers: {{csi: {{kubelet: {tmp_path}, mounter: /run/m.sock}}}}", {}, {}
    )
    machine = NodeParts.real(Access(), config=config).machine
    assert not machine.is_gone(POD)  # no directory of pods: no certainty
    (tmp_path / "pods").mkdir()
    assert machine.is_gone(POD)
    (tmp_path / "pods/u-1").mkdir()
    assert not machine.is_gone(POD)
