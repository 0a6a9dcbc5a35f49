"""A model of thousands of small files: seconds of the first pull, of another pull of it, and of a start with it.

The image is in memory, so that only the store's own cost is measured. Fails when the first pull exceeds its target.

    .venv/bin/python -m benchmarks.small_files --files 5000 --bytes 10000
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.cache_agent.images import MemoryImage, make_record, noise
from tests.cache_agent.nodes import NodeFactory, pull

# For 5,000 files on a quiet machine of two cores.
TARGET_SECONDS: Final = 8.0


def measured(step: Callable[[], object]) -> float:
    """Seconds of one step."""
    began = time.monotonic()
    step()
    return time.monotonic() - began


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=10_000)
    asked = parser.parse_args()
    contents = {f"d{n % 50}/f{n}.bin": noise(asked.bytes, n) for n in range(asked.files)}
    record, blobs = make_record([contents])
    images = {"reg.test/m": MemoryImage.of([record], blobs)}
    with tempfile.TemporaryDirectory(prefix="wy-") as base, ExitStack() as stack:
        node = NodeFactory(Path(base) / "store", stack)(images)
        seconds = {"first": measured(lambda: pull(node)), "again": measured(lambda: pull(node))}
        stack.close()
        seconds["start"] = measured(lambda: NodeFactory(Path(base) / "store", stack)(images))
    print(json.dumps({"files": asked.files, **{k: round(v, 2) for k, v in seconds.items()}}))
    return int(seconds["first"] > TARGET_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
