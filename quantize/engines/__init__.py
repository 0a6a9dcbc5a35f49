"""Engines other than the built-in one. Each runs in its own process; `engine_output` takes over its output."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from modelimage.errors import EngineFailed
from modelimage.installation import install_command
from quantize.calibration import Calibration
from quantize.checkpoint import Checkpoint
from quantize.dequantize import TensorFile, source_rows
from quantize.engines import llm_compressor, worker_process
from quantize.engines.engine_output import collect
from quantize.errors import EngineMissing, broken_weights
from quantize.plan import Plan
from quantize.schemes import Method, QuantizationEngine
from quantize.sqnr import Energies
from quantize.stages import OnStage, Stage, ignore_stage
from quantize.staging_dir import Staging

# GPTQModel's own pools need two workers each on any machine. Its arithmetic uses `EngineJob.threads`.
GPTQ_MIN_WORKERS: Final = 2
# GPTQModel packs with an extension that it compiles first, for up to a minute. Below so many bytes its other way, which
# writes the same, is done by then.
GPTQ_COMPILES_FROM: Final = 2 << 30
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class EngineJob:
    """The input of an engine."""

    checkpoint: Checkpoint
    plan: Plan
    calibration: Calibration | None
    method: Method | None
    threads: int


def gptq_installed() -> bool:
    """Whether GPTQModel is installed here, without importing it."""
    return importlib.util.find_spec("gptqmodel") is not None


def check_installed(engine: QuantizationEngine, environment: Mapping[str, str]) -> None:
    """Raises EngineMissing with the command that installs the engine."""
    if engine is QuantizationEngine.GPTQ and not gptq_installed():
        raise EngineMissing("GPTQModel isn't installed", hint=f"Run: {install_command('gptq')}")
    if engine is QuantizationEngine.LLM_COMPRESSOR:
        llm_compressor.interpreter(environment)


def versions(engine: QuantizationEngine, environment: Mapping[str, str]) -> dict[str, str]:
    """The library versions that an engine's bytes depend on; none for the built-in one."""
    if engine is QuantizationEngine.GPTQ:
        return {name: importlib.metadata.version(name) for name in ("gptqmodel", "torch")}
    if engine is QuantizationEngine.LLM_COMPRESSOR:
        return llm_compressor.versions(llm_compressor.interpreter(environment))
    return {}


def run(
    engine: QuantizationEngine, job: EngineJob, staging: Staging, on_stage: OnStage = ignore_stage
) -> dict[str, Energies]:
    """Run an engine into the staging directory. Raises BrokenWeights, EngineMissing, EngineFailed."""
    if job.calibration is None:
        raise EngineFailed(f"{engine.value} needs calibration text")
    _check_finite(job.checkpoint.root, job.plan)
    made = staging.directory / ".engine"
    # Left by an interrupted run.
    if made.exists():
        shutil.rmtree(made)
    # JSON on stdin, not an import: llm-compressor's environment doesn't have this distribution.
    document = {
        "source": str(job.checkpoint.root.absolute()),
        "out": str(made),
        "scheme": job.plan.scheme.value,
        "method": job.method.value if job.method else None,
        "group": job.plan.group,
        "ignored": list(job.plan.selection.ignored),
        "samples": list(job.calibration.samples),
        "threads": job.threads,
    }
    scratch = staging.directory / ".scratch"
    scratch.mkdir(exist_ok=True)
    environment = dict(os.environ)
    if engine is QuantizationEngine.GPTQ:
        python, worker = sys.executable, _HERE / "gptq_worker.py"
        environment |= _gptq_settings(job)
    else:
        python = str(llm_compressor.interpreter(environment))
        worker = _HERE / "llm_compressor_worker.py"
    worker_process.run_worker(
        [python, str(worker)], document, environment, name=engine.value, scratch=scratch,
        on_stage=on_stage,
    )  # fmt: skip
    on_stage(Stage("reading the quantized tensors"))
    rescaled = job.method is not None and job.method.rescales
    # Measured on the collected files, so that the check covers what is published, not what the engine claims.
    energies = collect(job.checkpoint.root, made, job.plan, staging, rescaled=rescaled)
    shutil.rmtree(made)
    shutil.rmtree(scratch)
    return energies


def _gptq_settings(job: EngineJob) -> dict[str, str]:
    settings = {"GPTQMODEL_CPU_WORKERS": str(max(job.threads, GPTQ_MIN_WORKERS))}
    if job.plan.source_bytes < GPTQ_COMPILES_FROM:
        settings["GPTQMODEL_DISABLE_PACK_EXT"] = "1"
    return settings


def _check_finite(source: Path, plan: Plan) -> None:
    """Check the source before the engine runs: engines take minutes, then fail obscurely or not at all."""
    for shard in plan.shards:
        file = TensorFile(source / shard.name)
        for conversion in shard.conversions:
            for start, _, rows in source_rows(file, conversion.matrix):
                broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
                if broken.size:
                    raise broken_weights(shard.name, conversion.matrix.module, start + broken[0])
