"""Zero to one to two and back with real processes, through the real scaler and activator, and no request fails."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.servers.process import until
from tests.workspace.scaler.fleet import Fleet, load, running
from workspace.scaler import Policy

REPOSITORY = Path(__file__).parents[3]


def fake_engine(port: int) -> list[str]:
    return [
        sys.executable, "-m", "tests.workspace.activator.engine",
        "--port", str(port), "--slots", "4", "--seconds", "0.15", "--boot", "0.3",
    ]  # fmt: skip


@pytest.mark.slow
def test_processes_follow_the_queue_and_no_request_fails(tmp_path: Path) -> None:
    async def scenario() -> list[int]:
        policy = Policy(least=0, most=2, queue_depth=4, up_window=0.6, down_window=3, batch=4)
        fleet = Fleet(fake_engine, policy, tmp_path, {"PYTHONPATH": str(REPOSITORY)})
        async with running(fleet) as (session, url):
            assert fleet.replicas == []
            both = lambda: len(fleet.serving()) == 2  # noqa: E731
            body = {"prompt": "hi"}
            statuses = await load(session, url, body, clients=16, requests=10**6, enough=both)
            assert both()
            statuses += await load(session, url, body, clients=16, requests=100)
            statuses += await load(session, url, body, clients=1, requests=30)
            assert statuses == [200] * len(statuses)
            await until(lambda: fleet.counts[-1] == 0, what="end of the fleet")
        return fleet.counts

    counts = asyncio.run(scenario())
    assert counts == [0, 1, 2, 1, 0]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_real_vllm_follows_the_queue_and_no_request_fails(tmp_root: Path, smollm2: Path) -> None:
    """In a directory with a short path: vLLM puts sockets there."""

    def vllm(port: int) -> list[str]:
        return [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(smollm2), "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port),
            "--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "256", "--max-num-seqs", "2",
        ]  # fmt: skip

    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        # one core each: the first replica leaves the second one room to start
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    body = {"model": "m", "prompt": "The capital of France is", "max_tokens": 24, "temperature": 0}

    async def scenario() -> list[int]:
        policy = Policy(least=0, most=2, queue_depth=2, up_window=2, down_window=6, batch=2)
        fleet = Fleet(vllm, policy, tmp_root, environment, period=0.5)
        async with running(fleet) as (session, url):
            both = lambda: len(fleet.serving()) == 2  # noqa: E731
            statuses = await load(session, url, body, clients=8, requests=10**6, enough=both)
            assert both()
            statuses += await load(session, url, body, clients=8, requests=24)
            statuses += await load(session, url, body, clients=1, requests=5)
            assert statuses == [200] * len(statuses)
            await until(lambda: fleet.counts[-1] == 1, what="end of the second replica")
        return fleet.counts

    counts = asyncio.run(scenario())
    assert counts == [0, 1, 2, 1]
