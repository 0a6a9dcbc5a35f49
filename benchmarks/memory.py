"""The memory tier: vLLM's own reader over a warmed model, beside the same files on a tmpfs, in one process.

Each round drops the model from the page cache, warms it like `weightyard warm`, and reads all its tensors twice, in
alternating order: from the store's files, and from a copy in /dev/shm. A cold read is printed too. Fails when the
warmed model loads at less than 0.9 times the speed of tmpfs.

    .venv/bin/python -m benchmarks.memory --gigabytes 2 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import torch
from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator

from cache_agent.residency.pressure import MemoryFacts
from cache_agent.residency.warmer import PageCacheWarmer
from tests.synthetic import synthetic_checkpoint

LEAST_RATIO: Final = 0.9
_ANY_PRESSURE: Final = 100.0


def load(files: Sequence[Path]) -> float:
    """Seconds until every tensor is copied to its own memory, as a model load does."""
    held: dict[str, torch.Tensor] = {}
    started = time.perf_counter()
    for name, tensor in safetensors_weights_iterator(
        [str(f) for f in files], use_tqdm_on_load=False
    ):
        # Copied into the same memory each round: fresh pages would be measured otherwise.
        target = held.get(name)
        if target is None:
            held[name] = tensor.clone()
        else:
            target.copy_(tensor)
    return time.perf_counter() - started


def drop(files: Sequence[Path]) -> None:
    """Drops files from the page cache, like a node that has just started."""
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            # Only clean pages can be dropped.
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def rounds(files: Sequence[Path], copies: Sequence[Path], count: int) -> dict[str, list[float]]:
    """Seconds of each load, by source; the first round warms the process's memory and doesn't count."""
    warmer = PageCacheWarmer(MemoryFacts(), pressure_limit=_ANY_PRESSURE)
    seconds: dict[str, list[float]] = {"cold": [], "warm": [], "warmed": [], "tmpfs": []}
    for number in range(count + 1):
        drop(files)
        cold = load(files)
        drop(files)
        started = time.perf_counter()
        warmer.warm(files)
        warm = time.perf_counter() - started
        pair: list[tuple[str, Callable[[], float]]] = [
            ("warmed", lambda: load(files)),
            ("tmpfs", lambda: load(copies)),
        ]
        for name, measured in pair if number % 2 else reversed(pair):
            value = measured()
            if number:
                seconds[name].append(value)
        if number:
            seconds["cold"].append(cold)
            seconds["warm"].append(warm)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    size = int(options.gigabytes * 1e9)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-memory-")))
        memory = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        checkpoint = synthetic_checkpoint(
            work / "model", total_bytes=size, shard_bytes=min(size, 500_000_000)
        )
        files = sorted(checkpoint.glob("*.safetensors"))
        copies = [Path(shutil.copy(path, memory)) for path in files]
        seconds = rounds(files, copies, options.rounds)
    pairs = zip(seconds["tmpfs"], seconds["warmed"], strict=True)
    ratio = statistics.median(tmpfs / warmed for tmpfs, warmed in pairs)
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:8} {middle:7.2f} s {size / middle / 1e9:7.2f} GB/s")
    print(f"a warmed model loads at {ratio:.2f} times the speed of tmpfs")
    if options.json:
        options.json.write_text(json.dumps({"size": size, "ratio": ratio, "seconds": seconds}))
    if ratio < LEAST_RATIO:
        sys.exit(f"missed: {ratio:.2f} times tmpfs, below {LEAST_RATIO}")


if __name__ == "__main__":
    main()
