"""Compares a quantized checkpoint with its source on fixed text, in a process of its own.

Started by `evaluate` with a job on stdin. Both models run in bf16 on the CPU or the first GPU. The
quantized one is the source's architecture with weights dequantized from the files, so that every format
can be measured on any machine; where activations are quantized too (W8A8), linear layers round their
inputs per token as the kernels do. Takes memory for both models at once.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from quantize.calibration import Calibration
from quantize.checkpoint import open_checkpoint
from quantize.dequantize import ROWS, Floats, Quantized, TensorFile, read_quantized
from quantize.experts import Matrix
from quantize.plan import Plan, ShardPlan, make_plan
from quantize.quality import Comparison
from quantize.schemes import Format, Scheme

WINDOW: Final = 512  # tokens
MIN_TOKENS: Final = 64


def main() -> None:
    """Measure as the job on stdin says; the comparison's JSON goes to the file it names."""
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
    found = compare(source, Path(job["quantized"]), plan, text)
    Path(job["result"]).write_text(json.dumps(found.to_json()))


def compare(source: Path, quantized: Path, plan: Plan, text: Calibration) -> Comparison:
    """Measure. Raises InvalidInput for a text that is too short, and what the libraries raise."""
    ids = _token_ids(source, text)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reference: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    weights = _dequantized(source, quantized, plan)
    subject = type(reference).from_pretrained(
        None, config=reference.config, state_dict=weights, dtype=torch.bfloat16
    )
    reference, subject = reference.to(device).eval(), subject.to(device).eval()
    if plan.scheme is Scheme.INT8:
        _round_activations(subject, plan)
    totals = np.zeros(len(_Totals._fields))
    with torch.inference_mode():
        for window in _windows(ids):
            inputs = torch.tensor([window], device=device)
            found = _measure(reference(inputs).logits, subject(inputs).logits, inputs)
            totals += np.array(found, dtype=np.float64)
    return _comparison(_Totals(*totals.tolist()), text, device)


class _Totals(NamedTuple):
    """Sums over positions: negative log-likelihoods, divergence, agreements, and how many."""

    source_nll: float
    quantized_nll: float
    divergence: float
    agreed: float
    positions: float


def _comparison(totals: _Totals, text: Calibration, device: str) -> Comparison:
    count = totals.positions
    return Comparison(
        perplexity_ratio=math.exp((totals.quantized_nll - totals.source_nll) / count),
        kl_divergence=totals.divergence / count,
        top1_agreement=totals.agreed / count,
        source_perplexity=math.exp(totals.source_nll / count),
        tokens=int(count),
        text=text.digest,
        evaluator=f"transformers on {device}",
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    )


def _measure(reference: Any, subject: Any, inputs: Any) -> _Totals:
    """One window: predictions at every position but the last, against the token that follows."""
    expected = torch.log_softmax(reference[0, :-1].float(), dim=-1)
    found = torch.log_softmax(subject[0, :-1].float(), dim=-1)
    following = inputs[0, 1:, None]
    divergence = (expected.exp() * (expected - found)).sum()
    agreed = (expected.argmax(-1) == found.argmax(-1)).sum()
    return _Totals(
        -float(expected.gather(1, following).sum()),
        -float(found.gather(1, following).sum()),
        float(divergence),
        float(agreed),
        float(len(following)),
    )


def _windows(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids) - 1, WINDOW):
        window = ids[start : start + WINDOW]
        if len(window) > 1:
            yield window


def _token_ids(source: Path, text: Calibration) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids: list[int] = tokenizer("\n\n".join(text.samples), add_special_tokens=False)["input_ids"]
    if len(ids) < MIN_TOKENS:
        raise InvalidInput(f"the evaluation text has {len(ids)} tokens, below {MIN_TOKENS}")
    return ids


def _dequantized(source: Path, quantized: Path, plan: Plan) -> dict[str, Any]:
    """The tensors of the quantized files by the source's names, matrices restored to bf16."""
    weights: dict[str, Any] = {}
    for shard in plan.shards:
        original, result = TensorFile(source / shard.name), TensorFile(quantized / shard.name)
        for copy in shard.copies:
            weights[copy.name] = _tensor(result, copy.name)
        for tensor, matrices in _by_tensor(shard).items():
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
    """Put a matrix where its tensor has it."""
    view = np.lib.stride_tricks.as_strided(
        flat[matrix.offset :],
        (matrix.rows, matrix.columns),
        (matrix.row_stride * flat.itemsize, matrix.column_stride * flat.itemsize),
    )
    for start in range(0, matrix.rows, ROWS):
        stop = min(start + ROWS, matrix.rows)
        view[start:stop] = quantized.rows(start, stop)


def _tensor(file: TensorFile, name: str) -> Any:
    raw = torch.from_numpy(file.raw(name))
    info = file.tensors[name]
    if info.dtype == "BF16":
        raw = raw.view(torch.bfloat16)
    return raw.reshape(info.shape)


def _round_activations(model: Any, plan: Plan) -> None:
    """Make the quantized linear layers round their inputs to 8 bits per token, as the kernels do."""
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
