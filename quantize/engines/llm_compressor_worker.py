"""Runs llm-compressor in its own environment: `python llm_compressor_worker.py < job.json`.

Imports nothing of this distribution, which that environment lacks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_TOKENS = 512


def main() -> None:
    """Run the job on stdin."""
    job: dict[str, Any] = json.load(sys.stdin)
    # The same job must produce the same bytes.
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    if not torch.accelerator.is_available():
        # AWQ pins memory for copies to an accelerator without checking that there is one.
        IntermediatesCache.pin_memory = lambda _cache, _index: None
    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(job["source"])
    rows = [tokenizer(text, truncation=True, max_length=MAX_TOKENS) for text in job["samples"]]
    samples = Dataset.from_list(
        [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows]
    )
    # Beside this script, which is run with a safe path: without its own folder.
    sys.path.append(str(Path(__file__).parent))
    from layer_stages import tell_layers  # type: ignore[import-not-found] # noqa: PLC0415
    from wide_linear import widen_on_cpu  # type: ignore[import-not-found] # noqa: PLC0415

    widen_on_cpu()
    tell_layers(model, job["stages"])
    oneshot(
        model=model,
        dataset=samples,
        recipe=_recipe(job),
        max_seq_length=MAX_TOKENS,
        num_calibration_samples=len(samples),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(job["out"], save_compressed=True)


def _recipe(job: dict[str, Any]) -> list[Any]:
    four = job["scheme"] == "int4"
    weights = {
        "num_bits": 4 if four else 8,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if four else "channel",
        "group_size": job["group"] if four else None,
    }
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if job["scheme"] == "int8":
        group["input_activations"] = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    scheme = {"config_groups": {"group_0": group}, "ignore": job["ignored"]}
    if job["method"] == "awq":
        return [AWQModifier(), QuantizationModifier(**scheme)]
    # Static: columns are rounded by their weight, and stored in their own order.
    calibrated = GPTQModifier(**scheme, actorder="static")
    if job["method"] == "smoothquant":
        # The strength of llm-compressor's own example for W8A8.
        return [SmoothQuantModifier(smoothing_strength=0.8), calibrated]
    return [calibrated]


if __name__ == "__main__":
    main()
