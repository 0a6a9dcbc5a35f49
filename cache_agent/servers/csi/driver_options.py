"""The CSI driver's options. In a module of their own because the driver's imports gRPC, which costs memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DRIVER: Final = "cache.weightyard.dev"


@dataclass(frozen=True, slots=True)
class CsiOptions:
    """`kubelet`: its directory, at the same path as on the host. `mounter`: its socket. `node`: this node's name."""

    kubelet: Path
    mounter: Path
    node: str

    @property
    def endpoint(self) -> Path:
        """The driver's socket."""
        return self.kubelet / "plugins" / DRIVER / "csi.sock"

    @property
    def registration(self) -> Path:
        """The socket by which kubelet's plugin watcher discovers the driver."""
        return self.kubelet / "plugins_registry" / f"{DRIVER}-reg.sock"


def node_name(environ: Mapping[str, str]) -> str:
    """This node's name: NODE_NAME, which the chart sets, else the host's name."""
    return environ.get("NODE_NAME") or os.uname().nodename
