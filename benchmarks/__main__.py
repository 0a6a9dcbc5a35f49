"""Runs the benchmarks one after the other: all, or those named. Fails when one of them does, after all have run.

    python -m benchmarks [build pull quantize ...]

Each is a module of this package with options of its own: `python -m benchmarks.build --help`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
    )


def main(asked: list[str]) -> int:
    """Run them in turn, each in a process of its own so that none warms up another's memory; the exit code."""
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
