"""Compares a quantized checkpoint with its source as vLLM serves them, in a process of its own for each model.

Started by `evaluate` twice: on the source, to keep the logits of every window in a directory, then on the quantized
checkpoint, to measure against them. vLLM tells log probabilities of the likeliest tokens only, and divergence needs
all of them: so the logits are taken where the model computes them, of one request at a time. One device.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from modelimage.digest import Digest
from quantize.agreement import WINDOW, Totals, comparison, measure, windows
from quantize.calibration import Calibration

# The engine in this process, so that the model's logits are; a KV cache for one short request; and all cores, of which
# vLLM keeps one free for a server's own work.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
}


def main() -> None:
    """Run the model that the job on stdin names; keep its logits, or compare them and write the comparison."""
    job: dict[str, Any] = json.load(sys.stdin)
    text = Calibration(tuple(job["samples"]), Digest.parse(job["text"]))
    tokens = list(windows(Path(job["source"]), text))
    kept = [Path(job["logits"]) / f"{number}.pt" for number in range(len(tokens))]
    found = _logits(Path(job["model"]), tokens)
    if job["result"] is None:
        for path, logits in zip(kept, found, strict=True):
            torch.save(logits, path)
        return
    totals = Totals()
    for path, logits, window in zip(kept, found, tokens, strict=True):
        totals = totals.plus(measure(torch.load(path), logits, torch.tensor(window[1:])))
    from vllm.platforms import current_platform  # noqa: PLC0415 - after the environment is set

    evaluator = f"vllm on {current_platform.device_type}"
    measured = comparison(totals, text, evaluator, ("torch", job["distribution"]))
    Path(job["result"]).write_text(json.dumps(measured.to_json()))


def _logits(model: Path, tokens: list[list[int]]) -> Iterator[Any]:
    """The logits at every position but the last of each window, [positions, vocabulary]."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - after the environment is set

    engine = LLM(
        str(model),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=WINDOW + 1,
        max_num_batched_tokens=WINDOW + 1,
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    computed: list[Any] = []
    engine.apply_model(lambda served: _listen(served, computed))
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    for window in tokens:
        computed.clear()
        engine.generate({"prompt_token_ids": window}, asked, use_tqdm=False)
        # The last token is sampled from first, then come those of the prompt.
        yield [each for each in computed if len(each) == len(window) - 1][-1]


def _listen(served: Any, computed: list[Any]) -> None:
    """Keep what a model's `compute_logits` (part of vLLM's interface of models) returns."""
    compute = served.compute_logits

    def listening(*arguments: Any, **named: Any) -> Any:
        logits = compute(*arguments, **named)
        if logits is not None:
            computed.append(logits.cpu())
        return logits

    served.compute_logits = listening


if __name__ == "__main__":
    main()
