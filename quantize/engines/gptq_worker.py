"""Runs GPTQModel in a process of its own: `python gptq_worker.py < job.json`.

It stands alone (imports nothing of this distribution), so that the engine's threads, its memory and what it
does to its libraries end with the process. Its output directory is read by `collect`, which takes the
quantized tensors alone.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def main() -> None:
    """Quantize as the job on stdin says; progress and errors go to stderr."""
    job: dict[str, Any] = json.load(sys.stdin)
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    config = QuantizeConfig(
        bits=4,
        group_size=job["group"],
        desc_act=False,
        sym=True,
        dynamic={f"-:^{name}$": {} for name in job["ignored"]} or None,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    model = GPTQModel.load(job["source"], config, backend=BACKEND.AUTO, trust_remote_code=False)
    model.quantize(job["samples"], batch_size=1)
    model.save(job["out"])


if __name__ == "__main__":
    main()
