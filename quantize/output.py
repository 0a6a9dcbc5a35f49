"""The files of a quantized checkpoint besides its weights, and the recipe for the record."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from modelimage.checkpoint_files import CONFIG, INDEX
from quantize.calibration import Calibration
from quantize.checkpoint import Checkpoint
from quantize.plan import Plan
from quantize.schemes import QuantizationEngine
from quantize.staging_dir import Staging


def write_other_files(staging: Staging, checkpoint: Checkpoint, plan: Plan) -> None:
    """Write the config, the index and the unchanged files."""
    staging.write(CONFIG, to_text(plan.config))
    if checkpoint.indexed:
        sizes = sum(tensor.size for shard in plan.shards for tensor in shard.tensors)
        index = {"metadata": {"total_size": sizes}, "weight_map": plan.weight_map()}
        staging.write(INDEX, to_text(index))
    for name in checkpoint.others:
        staging.copy(checkpoint.root / name)


def to_text(document: Mapping[str, Any]) -> bytes:
    """JSON as in published checkpoints: indented, keys in their order, a final newline."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def recipe(
    plan: Plan,
    *,
    engine: QuantizationEngine,
    method: str | None = None,
    calibration: Calibration | None,
    versions: Mapping[str, str],
    threads: int,
) -> dict[str, Any]:
    """The variant's recipe for the record: no measurements, no machine facts, no floats.

    Of `calibration` it holds the text's digest and the number of samples; `versions` and `threads` are stated only for
    engines whose bytes depend on them.
    """
    anywhere = engine is QuantizationEngine.RTN
    return {
        "scheme": plan.scheme.value,
        "format": plan.format.value,
        "engine": engine.value,
        "method": method,
        "bits": plan.numeric.bits,
        "groupSize": plan.group or None,
        "symmetric": True,
        "quantizedMatrices": plan.quantized,
        "keptMatrices": dict(sorted(Counter(plan.kept.values()).items())),
        "ignored": list(plan.selection.ignored),
        "calibration": str(calibration.digest) if calibration else None,
        "calibrationSamples": len(calibration.samples) if calibration else None,
        "reproducible": "anywhere" if anywhere else "same engine, threads and CPU class",
        "threads": None if anywhere else threads,
        "engineVersions": dict(sorted(versions.items())),
    }


def fingerprint(checkpoint: Checkpoint, plan: Plan) -> str:
    """Identifies a source and the plan for it. A changed header, size or modification time changes it."""
    digest = hashlib.sha256()
    digest.update(json.dumps([plan.scheme.value, plan.format.value, plan.group]).encode())
    digest.update(to_text(plan.config))
    # Not the bytes: hashing a checkpoint would take as long as quantizing it.
    for shard in plan.shards:
        status = (checkpoint.root / shard.name).stat()
        digest.update(f"{shard.name} {status.st_size} {status.st_mtime_ns}".encode())
        digest.update(shard.header)
    return digest.hexdigest()
