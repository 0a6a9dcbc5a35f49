"""The real vLLM on the real small model."""

from __future__ import annotations

import pytest

from tests.servers.vllm import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_the_model_knows_the_capital_of_france(vllm_server: VllmServer) -> None:
    assert "Paris" in vllm_server.complete("The capital of France is")


def test_metrics_count_what_was_asked(vllm_server: VllmServer) -> None:
    vllm_server.complete("One, two, three,")
    assert "vllm:request_success_total{" in vllm_server.metrics()
