"""The privileged container's program: `python -m cache_agent.mounter --root DIR --socket PATH --user UID`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cache_agent.mounter.binder import Binder
from cache_agent.mounter.server import Mounter, run_mounter
from cache_agent.store.paths import StorePaths
from modelimage.errors import WeightyardError


def main() -> int:
    """Run until told to stop; 1 when it can't start."""
    parser = argparse.ArgumentParser(prog="cache_agent.mounter", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the store's directory")
    parser.add_argument("--kubelet", type=Path, default=Path("/var/lib/kubelet"))
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--user", type=int, required=True, help="uid of the agent")
    options = parser.parse_args()
    mounter = Mounter(
        Binder(StorePaths(options.root).models, options.kubelet), frozenset({options.user})
    )
    try:
        run_mounter(mounter, options.socket, options.user, lambda: print("ready", flush=True))
    except WeightyardError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
