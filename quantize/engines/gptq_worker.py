"""Runs GPTQModel in its own process: `python gptq_worker.py < job.json`.

Imports nothing of this distribution. The engine's threads, memory and changes to its libraries end with the process.
`engine_output` reads its output directory and takes the quantized tensors alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def main() -> None:
    """Run the job on stdin; progress and errors go to stderr."""
    job: dict[str, Any] = json.load(sys.stdin)
    # The same job must produce the same bytes.
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    config = QuantizeConfig(
        bits=4,
        group_size=job["group"],
        # Columns stay in their order: with another one a server has to permute its activations.
        desc_act=False,
        sym=True,
        dynamic={f"-:^{name}$": {} for name in job["ignored"]} or None,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    # Code from a checkpoint is never run.
    model = GPTQModel.load(job["source"], config, backend=BACKEND.AUTO, trust_remote_code=False)
    # Beside this script, which is run with a safe path: without its own folder.
    sys.path.append(str(Path(__file__).parent))
    from layer_stages import tell_layers  # type: ignore[import-not-found] # noqa: PLC0415
    from wide_linear import widen_on_cpu  # type: ignore[import-not-found] # noqa: PLC0415

    widen_on_cpu()
    tell_layers(model.model, job["stages"])
    model.quantize(job["samples"], batch_size=1)
    model.save(job["out"])


if __name__ == "__main__":
    main()
