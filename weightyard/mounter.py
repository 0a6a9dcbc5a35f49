"""The privileged container's program: `python -m weightyard.mounter --root DIR --socket PATH --user UID`.

A module of this package, since only `weightyard` is importable by name where a wheel is installed. It must import
nothing but the mounter: what runs as root stays small.
"""

from __future__ import annotations

import sys

from cache_agent.mounter.program import main

if __name__ == "__main__":
    sys.exit(main())
