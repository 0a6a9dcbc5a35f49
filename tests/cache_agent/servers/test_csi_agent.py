"""A real agent that is killed: in the middle of a publish, and under a server that reads from a published volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.builder.building import build_here
from tests.cache_agent.mounter.mounters import NamespacedMounter
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agent_process import AgentProcess, csi_settings
from tests.cache_agent.servers.kubelet import Kubelet
from tests.cache_agent.servers.published import publish_model
from tests.servers.process import program, wait_until
from tests.servers.registry import DockerRegistry
from tests.servers.vllm import VllmServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@pytest.fixture
def kubelet(tmp_root: Path) -> Iterator[Kubelet]:
    with Kubelet(tmp_root / "kubelet") as running:
        yield running


@pytest.fixture
def mounter(tmp_root: Path, kubelet: Kubelet) -> Iterator[NamespacedMounter]:
    with NamespacedMounter(tmp_root / "store", kubelet.directory) as running:
        yield running


@pytest.fixture
def agent(tmp_root: Path, kubelet: Kubelet, mounter: NamespacedMounter) -> Iterator[AgentProcess]:
    process = AgentProcess(tmp_root / "store", **csi_settings(kubelet.directory, mounter.socket))
    yield process
    process.stop()
    assert findings(tmp_root / "store") == []


def test_an_agent_killed_in_the_middle_of_a_publish_goes_on_where_it_was(
    agent: AgentProcess, kubelet: Kubelet, mounter: NamespacedMounter, registry: DockerRegistry,
    unique_name: Callable[[str], str],
) -> None:  # fmt: skip
    image = f"{registry.host}/{unique_name('killed')}:v1"
    model = publish_model(image, seed=71)
    agent.start(WEIGHTYARD_FETCH__BANDWIDTH="20kB")
    wait_until(lambda: _is_waiting(kubelet, image), what="word that the model is on its way")
    agent.kill()
    assert mounter.mounts() == []
    agent.start()
    target = kubelet.publish("pod-1", image)
    assert (mounter.inside(target) / "config.json").read_bytes() == model.files["config.json"]
    kubelet.unpublish("pod-1", target)
    assert mounter.mounts() == []


def _is_waiting(kubelet: Kubelet, image: str) -> bool:
    """What the driver says after a second; a busy machine may not say anything in time."""
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.publish("pod-1", image, seconds=4)
    return "waiting for" in (caught.value.details() or "")


class VllmInNamespace(VllmServer):
    """vLLM in the mounter's mount namespace, as a pod sees what was published for it."""

    def __init__(self, model: str, mounter: NamespacedMounter) -> None:
        super().__init__(Path(model))
        self._enter = [program("nsenter"), f"--mount={mounter.proc}/ns/mnt"]

    def _command(self) -> list[str]:
        return [*self._enter, *super()._command()]


@pytest.mark.vllm
def test_a_server_reads_on_while_the_agent_is_killed_and_replaced(
    agent: AgentProcess, kubelet: Kubelet, mounter: NamespacedMounter, registry: DockerRegistry,
    unique_name: Callable[[str], str], smollm2: Path, tmp_path: Path,
) -> None:  # fmt: skip
    image = f"{registry.host}/{unique_name('served')}:v1"
    build_here(smollm2, image, tmp_path / "scratch")
    agent.start()
    target = kubelet.publish("pod-1", image)
    with VllmInNamespace(target, mounter) as server:
        assert "Paris" in server.complete("The capital of France is")
        agent.kill()
        assert "Paris" in server.complete("The capital of France is")
        agent.start()
        wait_until(lambda: kubelet.call("Identity", "Probe").ready.value, what="driver")
        kubelet.publish("pod-1", image)
        assert "Paris" in server.complete("The capital of France is")
    kubelet.unpublish("pod-1", target)
    assert mounter.mounts() == []
