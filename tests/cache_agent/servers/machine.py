"""A node as kubelet has it: directories, a mounter in a mount namespace, an agent that can be started again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from cache_agent.daemon.servers import ServerOptions
from cache_agent.servers.csi.driver_options import CsiOptions
from tests.cache_agent.mounter.mounters import NamespacedMounter
from tests.cache_agent.servers.agents import ServersInProcess
from tests.cache_agent.servers.kubelet import Kubelet

ALLOWED = ("127.0.0.1:*", "*.0.0.1:*")


@dataclass
class Machine:
    """A node: kubelet, mounter, and an agent that can be started again."""

    root: Path
    kubelet: Kubelet
    mounter: NamespacedMounter
    stack: ExitStack
    agent: ServersInProcess

    def restart(self) -> None:
        """End the agent and start it anew."""
        self.agent.__exit__()
        self.agent = start_agent(self.root, self.kubelet, self.mounter)

    def files(self, target: str) -> dict[str, bytes]:
        """What a pod sees at a target."""
        root = self.mounter.inside(target)
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and path.name != "weightyard.json"
        }

    def leases(self) -> list[str]:
        return [str(lease.holder) for lease in self.agent.node.store.leases.all()]


def start_agent(root: Path, kubelet: Kubelet, mounter: NamespacedMounter) -> ServersInProcess:
    csi = CsiOptions(kubelet.directory, mounter.socket, "node-1")
    return ServersInProcess(root, ServerOptions(registries=ALLOWED, csi=csi)).__enter__()


def refused(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value
