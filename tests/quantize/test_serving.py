"""The real small model in every format that vLLM serves on a CPU, and the memory estimate against its log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modelimage import memory
from modelimage.safetensors import TensorInfo
from quantize.api import QuantizeOptions, quantize_checkpoint
from quantize.checkpoint import open_checkpoint
from quantize.schemes import Engine, Format, Scheme
from tests.servers.vllm import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPT = "The capital of France is"
KV_SPACE = 1 << 30  # VLLM_CPU_KVCACHE_SPACE=1


@pytest.mark.parametrize(
    ("scheme", "format_"),
    [
        (Scheme.INT8, Format.INT_QUANTIZED),
        (Scheme.INT4, Format.PACK_QUANTIZED),
        (Scheme.INT4, Format.GPTQ),
    ],
    ids=["int8", "int4", "int4-gptq"],
)
def test_vllm_serves_what_was_quantized(
    smollm2: Path, tmp_path: Path, scheme: Scheme, format_: Format
) -> None:
    out = tmp_path / "model"
    quantize_checkpoint(smollm2, out, QuantizeOptions(scheme, format=format_, engine=Engine.RTN))
    with VllmServer(out) as server:
        assert "Paris" in server.complete(PROMPT, max_tokens=16)
        log = server.log_text()
    method = "auto_gptq" if format_ is Format.GPTQ else "compressed-tensors"
    assert f"quantization={method}" in log
    assert _cached_tokens(log) == pytest.approx(KV_SPACE / _per_token(out), rel=0.02)


def _per_token(model: Path) -> int:
    checkpoint = open_checkpoint(model)
    tensors: list[TensorInfo] = [t for h in checkpoint.shards.values() for t in h.tensors]
    found = memory.estimate(checkpoint.config, tensors)
    assert found.parameters == 134_515_008
    return found.kv_cache_bytes_per_token


def _cached_tokens(log: str) -> int:
    found = re.search(r"KV cache size: ([\d,]+) tokens", log)
    assert found is not None, log[-3000:]
    return int(found[1].replace(",", ""))
