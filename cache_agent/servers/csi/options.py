"""What a CSI driver needs to be told. Apart from the driver, so that an agent without one needn't import gRPC."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DRIVER: Final = "cache.weightyard.dev"


@dataclass(frozen=True, slots=True)
class CsiOptions:
    """`kubelet` is its directory, the same path here as on the host; `node` what Kubernetes calls this node."""

    kubelet: Path
    mounter: Path
    node: str

    @property
    def endpoint(self) -> Path:
        """The driver's socket."""
        return self.kubelet / "plugins" / DRIVER / "csi.sock"

    @property
    def registration(self) -> Path:
        """The socket that kubelet watches for."""
        return self.kubelet / "plugins_registry" / f"{DRIVER}-reg.sock"


def node_name(environ: Mapping[str, str]) -> str:
    """What this node is called: NODE_NAME, which the chart sets, else the host's name."""
    return environ.get("NODE_NAME") or os.uname().nodename
