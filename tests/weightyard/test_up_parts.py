"""The parts of `up` that decide: phases, stages, names of processes, states, what the machine has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import Busy, InvalidInput
from tests.servers.process import wait_until
from weightyard.cli import main
from weightyard.up.inference_server import check_port, free_port, reachable
from weightyard.up.local_hardware import local_hardware, parse_meminfo, parse_nvidia_smi
from weightyard.up.phases import TRANSITIONS, Event, Phase, after
from weightyard.up.process import (
    ProcessIdentity,
    identify,
    is_alive,
    send,
    send_session,
    session_members,
    stop_session,
)
from weightyard.up.stages import cause, last_words, plain
from weightyard.up.state import State, WorkspaceDirectory, WorkspaceFailure, condition, is_running
from weightyard.up.stop import StopResult, check_name, stop_workspace
from workspace.engine_log import stage_of

SLEEPER = "import sys, time; print('up', flush=True); time.sleep(600)"
FAMILY = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], ProcessIdentity]]:
    """A process that leads a session and has a child in it."""
    child = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    leader = identify(child.pid)
    assert leader is not None
    yield child, leader
    send_session(leader, signal.SIGKILL)
    child.communicate()


def test_every_live_phase_can_stop_and_fail() -> None:
    for phase in Phase:
        reachable_by = {event for (start, event) in TRANSITIONS if start is phase}
        if phase.over:
            assert reachable_by == set()
        else:
            assert {Event.ASKED_TO_STOP, Event.BROKE} <= reachable_by


def test_ready_comes_only_after_health() -> None:
    assert [pair for pair, end in TRANSITIONS.items() if end is Phase.READY] == [
        (Phase.STARTING, Event.HEALTHY)
    ]


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_life_ends(events: list[Event]) -> None:
    """Any possible sequence of events that holds a stop or a break and an end comes to an end and stays there."""
    phase = Phase.PULLING
    for event in events:
        if (phase, event) in TRANSITIONS:
            phase = after(phase, event)
        else:
            with pytest.raises(ValueError, match="can't happen"):
                after(phase, event)
    if not phase.over:
        assert after(after(phase, Event.ASKED_TO_STOP), Event.GONE) is Phase.STOPPED


# Lines as vLLM 0.32 wrote them.
LINES = {
    "(APIServer pid=13099) INFO 11-23 21:37:19 [api_utils.py:286] non-default args: {'host': 'x'}":
        "reading the model's configuration",
    "(EngineCore pid=13384) INFO 11-23 21:37:41 Initializing a V1 LLM engine (v0.32.0) with config: torch.compile":
        "starting the engine",
    "(Worker pid=13478) INFO 11-23 21:37:58 [cpu_model_runner.py:68] Starting to load model /m...": "loading weights",
    "Loading safetensors checkpoint shards:  33% Completed | 1/3 [00:00<00:00,  2.38it/s]": "loading weights, 33%",
    "(Worker pid=1) INFO 11-23 21:37:58 [default_loader.py:501] Loading weights took 0.44 seconds":
        "preparing the KV cache",
    "(EngineCore pid=1) INFO 11-23 21:38:00 init engine (profile, warmup model) took 0.56 s":
        "starting the HTTP server",
    "(APIServer pid=1) INFO 11-23 21:38:02 [entry.py:140] Starting vLLM server on http://127.0.0.1:18733":
        "starting the HTTP server",
    "(APIServer pid=1) WARNING 11-23 21:37:31 Enforce eager set, disabling torch.compile, CUDAGraphs": None,
    "INFO:     127.0.0.1:39496 - \"GET /health HTTP/1.1\" 200 OK": None,
}  # fmt: skip


@pytest.mark.parametrize(("line", "stage"), list(LINES.items()))
def test_stages(line: str, stage: str | None) -> None:
    assert stage_of(line) == stage


def test_cause_is_the_first_error_not_its_echo() -> None:
    lines = [
        "(EngineCore pid=7) ERROR 11-23 21:38:05 [core.py:906] Traceback (most recent call last):",
        "(EngineCore pid=7) ERROR 11-23 21:38:05 [core.py:906] torch.OutOfMemoryError: CUDA out of memory.",
        "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert cause(lines) == "torch.OutOfMemoryError: CUDA out of memory."
    assert (
        cause(lines[2:]) == "RuntimeError: Engine core initialization failed. See root cause above."
    )
    assert cause(lines[:1]) is None
    assert last_words(lines, 1) == [
        "RuntimeError: Engine core initialization failed. See root cause above."
    ]


@given(st.text(max_size=80))
def test_any_line_is_taken(line: str) -> None:
    assert plain(line) == plain(plain(line)) or "ERROR" in line or "(" in line
    stage_of(line)
    cause([line])


def test_own_identity() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert is_alive(me)
    assert ProcessIdentity.from_json(me.to_json()) == me
    assert not is_alive(replace(me, start=me.start + 1))
    assert not is_alive(replace(me, boot="another"))


def test_zombie_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identify(child.pid)
    assert identity is not None
    assert child.stdin is not None
    child.stdin.close()
    wait_until(lambda: not is_alive(identity), what="end of the child")
    assert not send(identity, signal.SIGTERM)
    child.wait()


def test_signal_spares_another_process_with_the_pid(
    family: tuple[subprocess.Popen[str], ProcessIdentity],
) -> None:
    child, leader = family
    other = replace(leader, start=leader.start - 1)
    assert not send(other, signal.SIGKILL)
    assert session_members(other) == []
    assert send_session(other, signal.SIGKILL) == 0
    assert child.poll() is None


def test_session_outlives_its_leader(family: tuple[subprocess.Popen[str], ProcessIdentity]) -> None:
    child, leader = family
    assert len(session_members(leader)) == 2
    send(leader, signal.SIGKILL)
    child.wait()
    assert len(session_members(leader)) == 1
    stop_session(leader, grace=0, pause=lambda: None, clock=lambda: 0.0)
    assert session_members(leader) == []


identities = st.builds(
    ProcessIdentity, st.integers(1, 1 << 22), st.integers(0, 1 << 60), st.uuids().map(str)
)
texts = st.text(max_size=20)
states = st.builds(
    State,
    name=texts, phase=st.sampled_from(Phase), supervisor=identities, image=texts,
    started_at=st.floats(0, 1e12), host=texts, port=st.integers(0, 65535), engine=texts, variant=texts,
    key=texts, served_name=texts, model_dir=texts, server=st.none() | identities,
    ready_at=st.none() | st.floats(0, 1e12),
    failure=st.none() | st.builds(WorkspaceFailure, texts, st.none() | texts, st.integers(0, 255)),
)  # fmt: skip


@given(states)
def test_state_round_trip(state: State) -> None:
    """`State.parse(s.to_text()) == s`."""
    assert State.parse(state.to_text()) == state


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"phase": "dancing"}'])
def test_state_that_is_none(text: str) -> None:
    with pytest.raises(InvalidInput):
        State.parse(text)


def test_condition_believes_processes_not_files() -> None:
    me = identify(os.getpid())
    assert me is not None
    state = State(
        name="a", phase=Phase.READY, supervisor=me, image="i", started_at=0.0, host="h", port=1
    )
    assert (condition(state), is_running(state)) == ("ready", True)
    lost = replace(state, supervisor=replace(me, start=1))
    assert (condition(lost), is_running(lost)) == ("died", False)
    stopped = replace(lost, phase=Phase.STOPPED)
    assert (condition(stopped), is_running(stopped)) == ("stopped", False)


def test_one_supervisor_per_name(tmp_path: Path) -> None:
    first, second = (WorkspaceDirectory(tmp_path, "a") for _ in range(2))
    with first.locked(), pytest.raises(Busy, match="is already running"), second.locked():
        pass
    with second.locked():
        pass


def test_down_says_nothing_of_stopping_what_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in ((["nope"], "nope: not running\n"), (["--all"], "no workspace runs here\n")):
        assert main(["down", *words, "--root", str(tmp_path)]) == 0
        assert capsys.readouterr() == (told, "")


def test_stopping_nothing(tmp_path: Path) -> None:
    assert stop_workspace(WorkspaceDirectory(tmp_path, "a"), timeout=1) is StopResult.NOT_RUNNING


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_names_stay_in_their_directory(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)


def test_nvidia_smi() -> None:
    text = "NVIDIA L4, 23034, 8.9\nNVIDIA H100 80GB HBM3, 81559, 9.0\nbroken\nOdd, [N/A], 9.0\nOld, 1000, [N/A]\n"
    assert [(g.name, g.memory_bytes >> 20, g.capability) for g in parse_nvidia_smi(text)] == [
        ("NVIDIA L4", 23034, 89), ("NVIDIA H100 80GB HBM3", 81559, 90), ("Old", 1000, 0),
    ]  # fmt: skip


def test_meminfo() -> None:
    assert parse_meminfo("MemTotal: 5 kB\nMemAvailable:   20 kB\n") == 20 * 1024
    assert parse_meminfo("MemTotal: 5 kB\n") == 0


def test_cpu_only_sees_no_gpu() -> None:
    hardware = local_hardware(cpu_only=True)
    assert hardware.gpu is None
    assert hardware.memory_bytes > 0


@pytest.mark.parametrize(("limit", "known"), [("4096\n", 4096), ("max\n", 0)])
def test_without_proc_the_memory_is_unknown_or_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, known: int
) -> None:
    monkeypatch.setattr("weightyard.up.local_hardware._MEMINFO", tmp_path / "none")
    monkeypatch.setattr("weightyard.up.local_hardware._CGROUP_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text(limit)
    assert local_hardware(cpu_only=True).memory_bytes == known


def test_free_port_is_free() -> None:
    check_port("127.0.0.1", free_port("127.0.0.1"))


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.1.2.3", "10.1.2.3")],  # noqa: S104
)
def test_reachable(host: str, address: str) -> None:
    assert reachable(host) == address


def test_an_error_under_the_lock_is_not_taken_for_a_second_start(tmp_path: Path) -> None:
    directory = WorkspaceDirectory(tmp_path, "a")
    with pytest.raises(Busy), directory.locked(), WorkspaceDirectory(tmp_path, "a").locked():
        pass
    with pytest.raises(BlockingIOError), directory.locked():
        raise BlockingIOError
