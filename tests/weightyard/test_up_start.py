"""How long `up` waits for a server: as long as it makes progress, and no longer than it may stand still."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modelimage.child import ProcessActivity
from modelimage.errors import TimedOut
from tests.weightyard.local import Terminal, empty_store, workspace
from weightyard.up import inference_server as servers
from weightyard.up.inference_server import Server
from workspace.launch_plan import LaunchPlan

SLEEPER = "import threading; threading.Event().wait()"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A child that never answers; its log is `tmp_path/log`."""
    (tmp_path / "log").write_text("")
    plan = SimpleNamespace(
        probes=SimpleNamespace(path="/health"), engine=SimpleNamespace(value="vllm")
    )
    with subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True) as child:
        yield Server(child, cast("LaunchPlan", plan), tmp_path / "log", "http://127.0.0.1:9")
        child.kill()


def wait(
    server: Server, monkeypatch: pytest.MonkeyPatch, works: Iterator[ProcessActivity]
) -> list[Any]:
    """Wait with a clock that jumps 100 s a look, and a server that has done what `works` says; the looks taken."""
    looks: list[ProcessActivity] = []

    def look(_pid: int, *, written: int = 0) -> ProcessActivity:
        looks.append(next(works))
        return looks[-1]

    monkeypatch.setattr(servers, "work_of", look)
    monkeypatch.setattr(servers, "POLL", 0)
    clock = itertools.count(0, 50)
    server.wait_until_healthy(
        describe=lambda _: None, stopped=lambda: len(looks) > 200, stall_seconds=300,
        clock=lambda: float(next(clock)),
    )  # fmt: skip
    return looks


def test_a_server_at_work_is_waited_for_however_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred looks, hours on the clock: only the user's stop ends it."""
    works = (ProcessActivity(cpu=3.0 * number) for number in itertools.count())
    with pytest.raises(servers.Stopped):
        wait(server, monkeypatch, works)


def test_a_server_that_stops_working_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = itertools.chain(
        (ProcessActivity(cpu=3.0 * n) for n in range(50)),
        itertools.repeat(ProcessActivity(cpu=150.0)),
    )
    with pytest.raises(TimedOut, match="for 300 s it has written no log") as caught:
        wait(server, monkeypatch, works)
    assert "--start-timeout" in str(caught.value.hint)


@pytest.mark.parametrize("mode", [[], ["-d"]])
def test_a_start_that_stands_still_ends_after_the_limit(
    terminal: Terminal, file: Path, mode: list[str]
) -> None:
    terminal.fake = "still"
    done = terminal.run("up", *mode, str(file), "--port", "0", "--start-timeout", "2")
    assert done.returncode == 14, done.stderr
    assert "the server makes no progress: for 2 s" in done.stderr
    assert "--start-timeout" in done.stderr
    assert terminal.state("tiny") == "failed"


def test_the_workspace_can_say_the_limit(terminal: Terminal, tiny_image: str) -> None:
    terminal.fake = "still"
    file = workspace(terminal.directory, "tiny", tiny_image, runtime={"startupSeconds": 3})
    done = terminal.run("up", str(file), "--port", "0")
    assert "the server makes no progress: for 3 s" in done.stderr


def test_a_cache_in_use_is_waited_for_until_its_owner_is_done(
    terminal: Terminal, file: Path
) -> None:
    """The owner is another process that holds the store's lock and answers nothing, as a pull does."""
    empty_store(terminal.root)
    with (terminal.root / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        process = terminal.start("up", str(file), "--port", "0", "--json")
        assert process.stderr is not None
        told = process.stderr.readline()
        assert f"open in another process (pid {os.getpid()})" in json.loads(told)["text"]
    terminal.wait_for("tiny", "ready")
    process.send_signal(signal.SIGINT)
    process.communicate()


def test_a_driver_that_never_answers_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from weightyard.up import local_hardware  # noqa: PLC0415

    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\n{SLEEPER}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(local_hardware, "_STALL_SECONDS", 0.5)
    with pytest.raises(Exception, match=r"nvidia-smi made no progress for 0\.5 s"):
        local_hardware.local_hardware(cpu_only=False)
