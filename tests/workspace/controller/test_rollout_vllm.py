"""Real vLLMs: probes tell a damaged variant from the model, and latency a slow version from the one that serves."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.servers.vllm import VllmServer
from tests.workspace.controller.loops.test_analysis_loop import KEY, NEW, OLD, server, status
from tests.workspace.controller.loops.test_probe_loop import AT_PROBES, ROLLOUT, revision
from tests.workspace.controller.loops.test_scaling_loop import a_runner
from tests.workspace.controller.rollouts.test_canary import V2
from tests.workspace.controller.rollouts.test_canary import status as rollout
from tests.workspace.controller.streams import Load, Servers
from tests.workspace.controller.test_routed_streams import Trial, fast_clock, fast_sleep, trial
from workspace.analysis import Outcome
from workspace.controller.loops import probe_loop
from workspace.controller.loops.analysis_loop import AnalysisLoop
from workspace.controller.loops.probe_loop import ProbeLoop
from workspace.controller.observation.revisions import version_id
from workspace.controller.runner import Runner
from workspace.probes.probe_set import ProbeSet, parse_probes
from workspace.probes.verdicts import ProbeOutcome, ProbeResult
from workspace.rollout_status import RolloutPhase, RolloutStatus
from workspace.schema import Workspace

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

PROBES = [
    {"name": "capital", "prompt": "The capital of France is", "maxTokens": 8, "contains": "Paris"},
    {"name": "counting", "prompt": "1, 2, 3, 4, 5,", "maxTokens": 8, "regex": r"^6\b"},
    {"name": "story", "prompt": "Once upon a time, there was a", "maxTokens": 24, "agreement": {}},
]


def damage(model: Path, to: Path) -> Path:
    """A copy of a model in which every second layer's MLP gives zeros: what a wrong scale does to a quantized one."""
    shutil.copytree(model, to)
    (weights,) = to.glob("*.safetensors")
    # A link into a shared store must not be written through.
    data = bytearray(weights.read_bytes())
    weights.unlink()
    (length,) = struct.unpack_from("<Q", data)
    for name, tensor in json.loads(data[8 : 8 + length]).items():
        if name.endswith("mlp.down_proj.weight") and int(name.split(".")[2]) % 2:
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            data[begin:end] = bytes(end - begin)
    weights.write_bytes(data)
    return to


@pytest.fixture(scope="module")
def vllm_server(smollm2: Path) -> Iterator[VllmServer]:
    with VllmServer(smollm2) as running:
        yield running


@pytest.fixture(scope="module")
def damaged_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with VllmServer(damage(smollm2, tmp_path_factory.mktemp("damaged") / "model")) as running:
        yield running


@pytest.fixture(scope="module")
def slow_server(smollm2: Path) -> Iterator[VllmServer]:
    """The model, with an argument that makes it slow under load: requests wait for one another."""
    with VllmServer(smollm2, "--max-num-seqs", "1") as running:
        yield running


async def source(workspace: Workspace, image: str) -> ProbeSet:
    return parse_probes(json.dumps({"probes": PROBES}), what="the file")


def probed(new: VllmServer, serving: VllmServer, monkeypatch: pytest.MonkeyPatch) -> ProbeResult:
    """What a rollout's probes say of one server beside another."""

    async def scenario() -> ProbeResult:
        runner = a_runner(KEY)
        document: Any = runner.cache.workspace(KEY)
        runner.cache.put({**document, "spec": {**document["spec"], "rollout": ROLLOUT}})
        runner.cache.put(revision(NEW))
        for name, version, each in (("a", OLD, serving), ("b", NEW, new)):
            port = int(each.url.rpartition(":")[2])
            runner.cache.put(server(name, version, "127.0.0.1", port))
        runner.rollouts[KEY] = status(**AT_PROBES)
        patient(monkeypatch)
        async with aiohttp.ClientSession() as session:
            await ProbeLoop(runner, session, source).ask(KEY)
        return runner.probes[KEY]

    return asyncio.run(scenario())


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have probes wait as long as a busy CPU takes."""
    monkeypatch.setattr(probe_loop, "_ANSWER", 600.0)
    monkeypatch.setattr(probe_loop, "_ROUND", 1200.0)


def test_the_model_passes_beside_itself(
    vllm_server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = probed(vllm_server, vllm_server, monkeypatch)
    assert result.outcome(0) is Outcome.PASSED, result.text


def test_a_damaged_variant_is_found(
    vllm_server: VllmServer, damaged_server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = probed(damaged_server, vllm_server, monkeypatch)
    assert result.outcome(0) is Outcome.FAILED, result.text
    story = next(each for each in result.verdicts if each.name == "story")
    assert story.outcome is ProbeOutcome.FAILED
    assert "less probable" in story.cause


STREAMED = {
    "model": "model", "prompt": "Once upon a time", "max_tokens": 8, "ignore_eos": True, "stream": True,
}  # fmt: skip


async def probing(runner: Runner, session: aiohttp.ClientSession) -> None:
    await ProbeLoop(runner, session, source).run()


async def comparing(runner: Runner, session: aiohttp.ClientSession) -> None:
    await AnalysisLoop(runner, session, clock=fast_clock, sleep=fast_sleep).run()


def test_under_load_a_damaged_version_is_taken_back_and_a_good_one_takes_over(
    vllm_server: VllmServer, damaged_server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams of real servers through HAProxy: all end whole, and the damaged version gets none."""
    patient(monkeypatch)
    real = (vllm_server.url, damaged_server.url, vllm_server.url)
    asked = {"analysis": {"probes": {"configMap": {"name": "answers"}}}}

    async def scenario() -> Load:
        load = Load(STREAMED, events=2)
        async with trial(Servers(real=real), load, (probing,), clients=3, rollout=asked) as made:
            bad = await taken_back(made, V2)
            await made.kill_controller()
            good = await promoted(made, f"{V2}.1")
            await made.answered(good.version)
            assert load.answers[version_id(bad.version)] == 0
            assert bad.reason == "WorseAnswers" or "probes" in bad.message, bad
        return load

    assert asyncio.run(scenario()).failures == []


def test_under_load_a_slow_version_is_taken_back_by_its_latency(
    vllm_server: VllmServer, slow_server: VllmServer
) -> None:
    """What waits in the slow version's queue is answered as well, and then it gets no more."""
    compared = {
        "steps": [{"weight": 50}, {"pause": {}}],
        # Two servers on the same cores take as long for a token as it happens: waiting alone is judged.
        "analysis": {"minRequests": 10, "maxRegression": {"timePerOutputToken": 100}},
    }

    async def scenario() -> tuple[Load, RolloutStatus]:
        load, real = Load(STREAMED, events=2), (vllm_server.url, slow_server.url)
        async with trial(
            Servers(real=real), load, (comparing,), clients=8, rollout=compared
        ) as made:
            slow = await taken_back(made, V2)
            await made.answered(slow.stable)
            assert load.answers[version_id(slow.version)] >= 10
        return load, slow

    load, slow = asyncio.run(scenario())
    assert load.failures == []
    worse = {each.name for each in slow.measures if not each.passed}
    assert worse
    assert worse <= {
        "p50 time to first token in seconds", "p95 time to first token in seconds", "p95 queue time in seconds",
    }  # fmt: skip


async def taken_back(made: Trial, image: str) -> RolloutStatus:
    made.cluster.change_spec(model={"image": image})
    await made.until(lambda: made.phase() is RolloutPhase.FAILED, "a version taken back")
    return rollout(made.cluster)


async def promoted(made: Trial, image: str) -> RolloutStatus:
    made.cluster.change_spec(model={"image": image})
    await made.until(lambda: made.is_paused_at(20), "a canary with a fifth")
    good = rollout(made.cluster)
    await made.answered(good.version)
    made.cluster.annotate(promote=good.version)
    await made.until(lambda: made.phase() is RolloutPhase.COMPLETED, "the new version alone")
    return good
