"""Runs all benchmarks, or the named ones, one after the other. Fails at the end when any of them failed.

    python -m benchmarks [build pull quantize ...]

Each is a module of this package with its own options: `python -m benchmarks.build --help`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def names() -> list[str]:
    """The names of all benchmarks."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
    )


def main(asked: list[str]) -> int:
    """Runs them in turn, each in its own process, so that none warms up another's memory; returns the exit code."""
    unknown = sorted(set(asked) - set(names()))
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    failed = []
    for name in asked or names():
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
