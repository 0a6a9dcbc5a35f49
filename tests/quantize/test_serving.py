"""The gptq format as the built-in engine writes it, served by a real vLLM. What a build publishes of the other formats
and engines is served in `tests/integration/test_variants.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.api import QuantizeOptions, quantize_checkpoint
from quantize.schemes import Engine, Format, Scheme
from tests.servers.vllm import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_vllm_serves_rounded_weights_in_the_gptq_format(smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    options = QuantizeOptions(Scheme.INT4, format=Format.GPTQ, engine=Engine.RTN)
    quantize_checkpoint(smollm2, out, options)
    with VllmServer(out) as server:
        assert "Paris" in server.complete("The capital of France is", max_tokens=16)
        assert "quantization=auto_gptq" in server.log_text()
