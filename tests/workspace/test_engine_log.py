"""The ends of stages in logs of vLLM, and the patterns in the source of the vLLM that is installed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace.engine_log import VLLM, EngineLog, LogPattern, read_log, stage_of, stamped_lines
from workspace.startup import StageName

# As kubelet gives it, of vLLM 0.32 with two ranks.
LOG = """\
2026-01-01T00:00:20.5Z (APIServer pid=1) INFO 01-01 00:00:20 [api_utils.py:286] non-default args: {'model': '/model'}
2026-01-01T00:00:22.1Z (EngineCore pid=9) INFO 01-01 00:00:22 [core.py:134] Initializing a V1 LLM engine (v0.32.0)
2026-01-01T00:00:30.2Z (Worker_TP0 pid=11) INFO [gpu_model_runner.py:5040] Starting to load model /model...
2026-01-01T00:00:30.5Z (Worker_TP1 pid=12) INFO [gpu_model_runner.py:5040] Starting to load model /model...
2026-01-01T00:00:40Z (Worker_TP0 pid=11) INFO [default_loader.py:502] Loading weights took 9.00 seconds
2026-01-01T00:00:44Z (Worker_TP1 pid=12) INFO [gpu_model_runner.py:5150] Model loading took 7.5 GiB memory and 13 s
2026-01-01T00:00:50Z (Worker_TP0 pid=11) INFO [backends.py:1167] Dynamo bytecode transform time: 4.10 s
2026-01-01T00:01:04Z (Worker_TP0 pid=11) INFO [monitor.py:62] torch.compile took 18.31 s in total
2026-01-01T00:01:20Z (EngineCore pid=9) INFO [core.py:403] init engine (profile, warmup model) took 36 s
2026-01-01T00:01:21Z (APIServer pid=1) INFO [entry.py:140] Starting vLLM server on http://0.0.0.0:8000
2026-01-01T09:00:00Z (Worker_TP0 pid=11) INFO [backends.py:399] Compiling a graph for compile range 7 takes 1.0 s
not a line of kubelet's
"""
BEGAN = 1767225600.0  # 2026-01-01T00:00:00Z


def test_a_log_tells_when_stages_ended() -> None:
    found = read_log(stamped_lines(LOG)).ends
    assert {stage: round(at - BEGAN, 3) for stage, at in found.items()} == {
        StageName.PROCESS: 20.5, StageName.ENGINE: 30.2, StageName.WEIGHTS: 44, StageName.COMPILE: 64,
        StageName.WARM_UP: 80,
    }  # fmt: skip


@given(st.text(max_size=300))
def test_any_log_is_read(text: str) -> None:
    read_log(stamped_lines(text))
    log = EngineLog()
    log.read(1.0, text)
    stage_of(text)


@pytest.mark.parametrize("row", VLLM, ids=lambda row: row.pattern.pattern[:16])
def test_a_long_line_takes_no_longer_than_to_read_it(row: LogPattern) -> None:
    """A tenant writes it. A pattern that goes back and forth in it would stop the controller for hours."""
    start = row.pattern.pattern[:20]
    for filler in (start, "a", "0"):
        # As long as what is read of a line, and much longer.
        for size in (1000, 1 << 20):
            line = (start + filler * (size // len(filler)))[:size]
            row.pattern.search(line)
            EngineLog().read(1.0, line)
            stage_of(line)


def test_a_line_of_a_log_holds_no_other_line() -> None:
    """What a server writes can't set times: a form feed within its line begins no new one, and no day is the 99th."""
    text = "2026-01-01T00:00:20Z a\x0c2026-01-09T00:00:00Z init engine (x) took 1 s\n2026-01-99T00:00:00Z b\n"
    assert [at - BEGAN for at, _ in stamped_lines(text)] == [20.0]


@pytest.mark.torch
def test_the_installed_vllm_says_what_the_table_expects() -> None:
    """Each stage that a log ends has a message in the source, so that a new vLLM's words are noticed."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None, "run `make setup`"
    folder = Path(spec.origin).parent
    parts = ("v1", "entrypoints", "model_executor/model_loader", "compilation")
    source = "\n".join(
        path.read_text(errors="replace") for part in parts for path in (folder / part).rglob("*.py")
    )
    # A message's arguments: `took %.2f s` for `init engine .* took`.
    for stage in {row.ends for row in VLLM if row.ends is not None}:
        patterns = [row.pattern.pattern for row in VLLM if row.ends is stage]
        assert any(re.search(pattern, source) for pattern in patterns), stage
