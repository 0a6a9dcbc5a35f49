"""The name of this node, the same for the CSI driver, the NodeCache and `weightyard doctor`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping


def node_name(
    environ: Mapping[str, str] = os.environ,
    hostname: Callable[[], str] = lambda: os.uname().nodename,
) -> str:
    """This node's name as its kubelet registers it: NODE_NAME, which the chart sets, else the host's name."""
    # kubelet trims the host's name and lowers its case (nodeutil.GetHostname). It refuses an underscore, which a host
    # outside a cluster may have; the NodeCache that such a host shows has to be a valid object all the same.
    return (environ.get("NODE_NAME") or hostname()).strip().lower().replace("_", "-")
