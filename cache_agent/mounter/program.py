"""The privileged container's program, which `weightyard.mounter` starts: `--root DIR --socket PATH --user UID`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cache_agent.mounter import isolation
from cache_agent.mounter.binder import Binder
from cache_agent.mounter.liveness import LivenessFile
from cache_agent.mounter.server import Mounter
from cache_agent.net.sockets import listen
from modelimage.errors import WeightyardError


def main() -> int:
    """Run until SIGTERM or SIGINT; return 1 when it can't start."""
    parser = argparse.ArgumentParser(prog="weightyard.mounter", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, action="append", help="a store's root")
    parser.add_argument("--kubelet", type=Path, default=Path("/var/lib/kubelet"))
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--user", type=int, required=True, help="uid of the agent")
    options = parser.parse_args()
    models = [root / "models" for root in options.root]
    mounter = Mounter(Binder(models, options.kubelet), options.user)
    try:
        isolation.leave_network()
        server = listen(options.socket)
        alive = LivenessFile(options.socket.with_suffix(".alive"))
        os.chown(options.socket, options.user, -1)
        # Before the first order is accepted, and after chown, which needs a capability dropped here.
        isolation.keep_only(isolation.CAP_SYS_ADMIN, isolation.CAP_DAC_READ_SEARCH)
    except (OSError, WeightyardError) as error:
        print(f"error: the mounter can't start: {error}", file=sys.stderr)
        return 1
    mounter.serve(server, lambda: print("ready", flush=True), alive.beat)
    return 0
