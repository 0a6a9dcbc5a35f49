"""Compares a quantized checkpoint with its source as served by vLLM, in one process per model.

`evaluate` runs it twice: on the source, saving the logits of every window in a directory, then on the quantized
checkpoint, comparing with them. vLLM reports log probabilities of the likeliest tokens only, and divergence needs all
of them: the logits are captured where the model computes them, one request at a time. One device.
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
from quantize.stages import Stage, stage_writer

# The engine runs in this process to give access to the model's logits; a KV cache for one short request is enough; and
# all cores are used, of which vLLM would keep one free for a server.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
}


def main() -> None:
    """Run the model named by the job on stdin; save its logits, or compare with saved ones and write the comparison."""
    job: dict[str, Any] = json.load(sys.stdin)
    text = Calibration(tuple(job["samples"]), Digest.parse(job["text"]))
    tokens = list(windows(Path(job["source"]), text))
    kept = [Path(job["logits"]) / f"{number}.pt" for number in range(len(tokens))]
    found = _logits(Path(job["model"]), tokens, job)
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


def _logits(model: Path, tokens: list[list[int]], job: dict[str, Any]) -> Iterator[Any]:
    """The logits at every position but the last of each window, [positions, vocabulary]."""
    on_stage = stage_writer(Path(job["stages"]))
    what = "the source" if job["result"] is None else "the variant"
    on_stage(Stage(f"evaluating: vLLM loads {what}"))
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - after the environment is set

    # No prefix cache: tokens that it skips would have no logits.
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
    # `prompt_logprobs` alone makes vLLM compute logits of the prompt, and one token has to be generated.
    parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    for done, window in enumerate(tokens):
        on_stage(Stage(f"evaluating: vLLM runs {what}", done, len(tokens)))
        computed.clear()
        engine.generate({"prompt_token_ids": window}, parameters, use_tqdm=False)
        # Logits of the sampled last token come first, then those of the prompt.
        yield [each for each in computed if len(each) == len(window) - 1][-1]


def _listen(served: Any, computed: list[Any]) -> None:
    """Record what a model's `compute_logits` (part of vLLM's model interface) returns."""
    compute = served.compute_logits

    def listening(*arguments: Any, **named: Any) -> Any:
        logits = compute(*arguments, **named)
        if logits is not None:
            computed.append(logits.cpu())
        return logits

    served.compute_logits = listening


if __name__ == "__main__":
    main()
