"""Speed of the built-in engine, relative to `cp` of the same input and to memcpy; pairs in one run.

    python -m benchmarks.quantize [--gigabytes 1.0] [--pairs 7] [--shard-gigabytes 5.0] [--llm-compressor]

Each number is the median of pairs taken in turn, so that other load affects both sides alike. The checkpoint is random,
with a llama's shapes, in the page cache. Everything is warmed up first: on a virtual machine, memory touched for the
first time costs several times as much. Each run's output is deleted and the disk left idle before the next begins: `cp`
doesn't wait for the disk, so its gigabyte would be written during our run. Memory is measured on a single shard with
tensors above a gigabyte each. Exits with 1 when a bound isn't met.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from modelimage.safetensors import build_header
from quantize.engines import llm_compressor
from quantize.kernels import kernel
from quantize.quantizer import QuantizeOptions, quantize_checkpoint
from quantize.schemes import NUMERICS, QuantizationEngine, Scheme
from tests.synthetic import synthetic_checkpoint

Results = dict[str, dict[str, float]]

# Bounds: prefix of an entry's name, its number, whether the bound is a minimum, and the bound.
BOUNDS = (
    ("kernel", "of memcpy", True, 0.5),
    ("checkpoint int4", "of cp", True, 0.6),
    ("llm-compressor", "ours of theirs", True, 10.0),
    ("memory", "RSS MB", False, 600.0),
    ("memory", "RssAnon MB", False, 300.0),
)
DATA_FREE = """
import sys, torch
from transformers import AutoModelForCausalLM
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
import time
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
began = time.perf_counter()
oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"]))
model.save_pretrained(sys.argv[2], save_compressed=True)
print("SECONDS", time.perf_counter() - began)
"""


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def pairs(
    first: Callable[[], object],
    second: Callable[[], object],
    count: int,
    clean: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Median seconds of both, taken in turn after a warm-up round; `clean` runs before each."""

    def timed(call: Callable[[], object]) -> float:
        clean()
        return seconds(call)

    taken = [(timed(first), timed(second)) for _ in range(count + 1)][1:]
    clean()
    return statistics.median(a for a, _ in taken), statistics.median(b for _, b in taken)


def measure_kernel(scheme: Scheme, group: int, count: int) -> dict[str, float]:
    """One core on data larger than its caches, relative to copying the same data."""
    rows, columns = 8192, 8192
    bits = np.random.default_rng(1).integers(0x3C00, 0x3E00, (rows, columns), np.uint16)
    numeric = NUMERICS[scheme]
    values = np.zeros((rows, columns * numeric.bits // 8), np.uint8)
    scales = np.zeros((rows, columns // (group or columns)), np.uint16)
    sums, copy = np.zeros((rows, 2)), np.zeros_like(bits)
    run = kernel("BF16", numeric, group)
    ours, memcpy = pairs(
        lambda: run(bits, values, scales, sums), lambda: np.copyto(copy, bits), count
    )
    size = bits.nbytes / 1e9
    return {"GB/s": size / ours, "memcpy GB/s": size / memcpy, "of memcpy": memcpy / ours}


def measure_checkpoint(source: Path, work: Path, scheme: Scheme, count: int) -> dict[str, float]:
    """End to end with fsync, relative to `cp` of the weights without it."""
    size = sum(path.stat().st_size for path in source.glob("*.safetensors")) / 1e9
    out, copy = work / "out", work / "copy"

    def ours() -> None:
        quantize_checkpoint(source, out, QuantizeOptions(scheme, engine=QuantizationEngine.RTN))

    def cp() -> None:
        subprocess.run(["cp", "-r", "--reflink=never", source, copy], check=True)

    def clean() -> None:
        for path in (out, copy):
            shutil.rmtree(path, ignore_errors=True)
        os.sync()

    mine, theirs = pairs(ours, cp, count, clean)
    return {"GB/s": size / mine, "cp GB/s": size / theirs, "of cp": theirs / mine}


def large_shard(source: Path, size: float) -> None:
    """Writes a checkpoint of one file of about `size` GB: a sparse file of zeros, in tensors of 1.2 GB."""
    source.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 24576}
    (source / "config.json").write_text(json.dumps(config))
    shape = (24576, 24576)
    count = max(1, math.ceil(size * 1e9 / (2 * math.prod(shape))))
    entries = {f"model.layers.{n}.mlp.down_proj.weight": ("BF16", shape) for n in range(count)}
    header = build_header(entries, {})
    with (source / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + count * 2 * math.prod(shape))


def measure_memory(source: Path, work: Path) -> dict[str, float]:
    """Peak resident memory in MB of a quantizing process, from the kernel's counters."""
    # In its own process: this one's memory already holds the other measurements.
    code = (
        "import sys; from pathlib import Path; from benchmarks.quantize import peak;"
        "print(peak(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    target = work / "peak"
    done = subprocess.run(
        [sys.executable, "-c", code, source, target], capture_output=True, check=True, text=True
    )
    shutil.rmtree(target)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def peak(source: Path, out: Path) -> str:
    """Quantizes to INT4, and samples this process's anonymous memory at every block."""
    anonymous = 0

    def sample(_done: int, _total: int) -> None:
        nonlocal anonymous
        anonymous = max(anonymous, _status("RssAnon"))

    quantize_checkpoint(
        source, out, QuantizeOptions(Scheme.INT4, engine=QuantizationEngine.RTN), sample
    )
    return json.dumps({"RSS MB": _status("VmHWM") / 1000, "RssAnon MB": anonymous / 1000})


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def measure_llm_compressor(source: Path, work: Path) -> dict[str, float]:
    """llm-compressor's data-free INT4 path in its own environment: quantizing and saving, without loading."""
    python = llm_compressor.interpreter(os.environ)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors")) / 1e9
    done = subprocess.run(
        [python, "-c", DATA_FREE, source, work / "theirs"],
        capture_output=True,
        check=True,
        text=True,
    )
    took = next(float(x.split()[1]) for x in done.stdout.splitlines() if x.startswith("SECONDS"))
    return {"GB/s": size / took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--shard-gigabytes", type=float, default=5.0)
    parser.add_argument("--llm-compressor", action="store_true")
    options = parser.parse_args()
    found: Results = {}
    for scheme, group in ((Scheme.INT4, 128), (Scheme.INT4, 64), (Scheme.INT8, 0)):
        found[f"kernel {scheme.value} {group or 'row'}"] = measure_kernel(
            scheme, group, options.pairs
        )
    with tempfile.TemporaryDirectory(prefix="bench-quantize-") as name:
        work = Path(name)
        source = work / "source"
        synthetic_checkpoint(source, total_bytes=int(options.gigabytes * 1e9), seed=1)
        for scheme in (Scheme.INT4, Scheme.INT8):
            found[f"checkpoint {scheme.value}"] = measure_checkpoint(
                source, work, scheme, options.pairs
            )
        if options.llm_compressor:
            theirs = measure_llm_compressor(source, work)
            ratio = found["checkpoint int4"]["GB/s"] / theirs["GB/s"]
            found["llm-compressor data-free int4"] = theirs | {"ours of theirs": ratio}
        large_shard(work / "large", options.shard_gigabytes)
        found["memory int4, large shard"] = measure_memory(work / "large", work)
    report(found)


def report(found: Results) -> None:
    """Prints the results. Raises SystemExit when a bound isn't met."""
    print(f"cores: {len(os.sched_getaffinity(0))}")
    missed = []
    for name, numbers in found.items():
        print(f"{name}: { {key: round(value, 2) for key, value in numbers.items()} }")
        missed += [
            f"{name}: {key} is {numbers[key]:.2f}, not {'at least' if least else 'below'} {bound:g}"
            for start, key, least, bound in BOUNDS
            if name.startswith(start)
            and not (numbers[key] >= bound if least else numbers[key] < bound)
        ]
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
