"""Compares a quantized checkpoint with its source on fixed text, in its own process.

Started by `evaluate` with a job on stdin. Both models run in bf16 on the CPU or the first GPU. The quantized
one is the source's architecture with weights dequantized from the files, so any format can be measured on any
machine; where activations are quantized too (W8A8), linear layers round their inputs per token like the
kernels. Needs memory for both models at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from modelimage.digest import Digest
from quantize.agreement import Totals, comparison, measure, windows
from quantize.calibration import Calibration
from quantize.checkpoint import open_checkpoint
from quantize.dequantize import ROWS, Floats, Quantized, TensorFile, read_quantized
from quantize.engines.wide_linear import widen_on_cpu
from quantize.experts import Matrix
from quantize.plan import Plan, ShardPlan, make_plan
from quantize.quality import Comparison
from quantize.schemes import Format, Scheme
from quantize.stages import OnStage, Stage, ignore_stage, stage_writer

COMPARING: Final = "evaluating: comparing predictions"


def main() -> None:
    """Run the job on stdin; write the comparison as JSON to the file that the job names."""
    job: dict[str, Any] = json.load(sys.stdin)
    source = Path(job["source"])
    checkpoint = open_checkpoint(source)
    plan = make_plan(
        checkpoint.config,
        checkpoint.shards,
        scheme=Scheme(job["scheme"]),
        format_=Format(job["format"]),
        group_size=job["group"] or None,
    )
    text = Calibration(tuple(job["samples"]), Digest.parse(job["text"]))
    on_stage = stage_writer(Path(job["stages"]))
    widen_on_cpu()
    found = compare(source, Path(job["quantized"]), plan, text, on_stage)
    Path(job["result"]).write_text(json.dumps(found.to_json()))


def compare(
    source: Path,
    quantized: Path,
    plan: Plan,
    text: Calibration,
    on_stage: OnStage = ignore_stage,
) -> Comparison:
    """Compare, and tell the stages. Raises InvalidInput for text that is too short, and the libraries' own errors."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_stage(Stage("evaluating: loading the source"))
    reference: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    # Weights in the source's own names and shapes: transformers then needs to know no quantized format.
    weights = _dequantized(source, quantized, plan, on_stage)
    subject = type(reference).from_pretrained(
        None, config=reference.config, state_dict=weights, dtype=torch.bfloat16
    )
    reference, subject = reference.to(device).eval(), subject.to(device).eval()
    # Only W8A8 kernels round activations; in other schemes they stay as published.
    if plan.scheme is Scheme.INT8:
        _round_activations(subject, plan)
    totals = Totals()
    parts = list(windows(source, text))
    with torch.inference_mode():
        for done, window in enumerate(parts):
            inputs = torch.tensor([window], device=device)
            on_stage(Stage(COMPARING, 2 * done, 2 * len(parts)))
            expected = reference(inputs).logits[0, :-1]
            on_stage(Stage(COMPARING, 2 * done + 1, 2 * len(parts)))
            found = subject(inputs).logits[0, :-1]
            totals = totals.plus(measure(expected, found, inputs[0, 1:]))
    return comparison(totals, text, f"transformers on {device}", ("torch", "transformers"))


def _dequantized(source: Path, quantized: Path, plan: Plan, on_stage: OnStage) -> dict[str, Any]:
    """The quantized files' tensors by their source names, with matrices restored to bf16."""
    weights: dict[str, Any] = {}
    for done, shard in enumerate(plan.shards):
        on_stage(Stage("evaluating: reading the quantized weights", done, len(plan.shards)))
        original, result = TensorFile(source / shard.name), TensorFile(quantized / shard.name)
        for copy in shard.copies:
            weights[copy.name] = _tensor(result, copy.name)
        for tensor, matrices in _by_tensor(shard).items():
            # By source tensor: the experts of a fused tensor were quantized one by one.
            restored = np.empty(original.tensors[tensor].elements, np.float32)
            for matrix in matrices:
                _place(restored, matrix, read_quantized(result, matrix.module))
            shape = original.tensors[tensor].shape
            weights[tensor] = torch.from_numpy(restored).reshape(shape).to(torch.bfloat16)
    return weights


def _by_tensor(shard: ShardPlan) -> dict[str, list[Matrix]]:
    out: dict[str, list[Matrix]] = {}
    for conversion in shard.conversions:
        out.setdefault(conversion.matrix.tensor, []).append(conversion.matrix)
    return out


def _place(flat: Floats, matrix: Matrix, quantized: Quantized) -> None:
    """Write a matrix to its position in the source tensor."""
    view = np.lib.stride_tricks.as_strided(
        flat[matrix.offset :],
        (matrix.rows, matrix.columns),
        (matrix.row_stride * flat.itemsize, matrix.column_stride * flat.itemsize),
    )
    # In blocks, so that only a few rows exist in float32 twice.
    for start in range(0, matrix.rows, ROWS):
        stop = min(start + ROWS, matrix.rows)
        view[start:stop] = quantized.rows(start, stop)


def _tensor(file: TensorFile, name: str) -> Any:
    raw = torch.from_numpy(file.raw(name))
    info = file.tensors[name]
    # numpy has no bfloat16, so the bits were read as integers.
    if info.dtype == "BF16":
        raw = raw.view(torch.bfloat16)
    return raw.reshape(info.shape)


def _round_activations(model: Any, plan: Plan) -> None:
    """Make quantized linear layers round their inputs to 8 bits per token, like the kernels."""
    quantized = {c.matrix.module for shard in plan.shards for c in shard.conversions}

    def rounded(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        exact = inputs[0].float()
        scale = exact.abs().amax(dim=-1, keepdim=True).clamp(min=1e-7) / 127
        values = (exact / scale).round().clamp(-128, 127)
        return ((values * scale).to(inputs[0].dtype), *inputs[1:])

    for name, module in model.named_modules():
        if name in quantized and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)


if __name__ == "__main__":
    main()
