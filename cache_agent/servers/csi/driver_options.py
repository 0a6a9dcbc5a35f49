"""The CSI driver's options. In a module of their own because the driver's imports gRPC, which costs memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cache_agent.api.shared_names import CSI_DRIVER


@dataclass(frozen=True, slots=True)
class CsiOptions:
    """`kubelet`: its directory, at the same path as on the host. `mounter`: its socket. `node`: this node's name."""

    kubelet: Path
    mounter: Path
    node: str

    @property
    def endpoint(self) -> Path:
        """The driver's socket."""
        return self.kubelet / "plugins" / CSI_DRIVER / "csi.sock"

    @property
    def registration(self) -> Path:
        """The socket by which kubelet's plugin watcher discovers the driver."""
        return self.kubelet / "plugins_registry" / f"{CSI_DRIVER}-reg.sock"
