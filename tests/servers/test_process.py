"""Starting, waiting for and stopping a child and all that it started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.servers.process import (
    ServerFailed,
    ServerProcess,
    child_environment,
    program,
    run,
    wait_until,
)

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; print('child', flush=True); time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


def start(code: str, tmp_path: Path) -> ServerProcess:
    command = [sys.executable, "-c", code]
    return ServerProcess(command, log=tmp_path / "log", environment=child_environment(tmp_path))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_leaving_the_context_ends_the_children_of_the_child(tmp_path: Path) -> None:
    with start(PARENT, tmp_path) as server:
        server.wait_for(lambda: "child" in server.log_text(), what="child")
        pids = [server.pid, *(int(w) for w in server.log_text().split() if w.isdigit())]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
    wait_until(lambda: not any(is_running(pid) for pid in pids), what="end of both")


def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    with start(stubborn, tmp_path) as server:
        server.wait_for(lambda: "up" in server.log_text(), what="sign of life")
        server.stop(idle_seconds=0.01)
        assert not server.is_running()


def test_a_child_that_dies_early_shows_its_log(tmp_path: Path) -> None:
    with (
        start("import sys; sys.exit('no such model')", tmp_path) as server,
        pytest.raises(ServerFailed, match=r"ended with 1 .*\n.*no such model"),
    ):
        server.wait_for(lambda: False, what="port")


def test_a_child_that_stands_still_shows_its_log(tmp_path: Path) -> None:
    with start("import time; print('loading', flush=True); time.sleep(600)", tmp_path) as server:
        server.wait_for(lambda: "loading" in server.log_text(), what="sign of life")
        with pytest.raises(
            ServerFailed, match=r"no port, and the machine was idle for 0.01 s.*\n.*loading"
        ):
            server.wait_for(lambda: False, what="port", idle_seconds=0.01)


def test_a_client_that_fails_tells_what_it_wrote(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="no such thing"):
        run(
            [sys.executable, "-c", "import sys; sys.exit('no such thing')"],
            environment=child_environment(tmp_path),
        )


def test_children_see_nothing_of_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    shown = run(
        [sys.executable, "-c", "import os; print(sorted(os.environ))"],
        environment=child_environment(tmp_path),
    )
    assert "HTTPS_PROXY" not in shown
    assert os.environ["HTTPS_PROXY"]


def test_a_missing_program_is_a_failure_with_a_way_out() -> None:
    with pytest.raises(ServerFailed, match="make setup"):
        program("weightyard-no-such-program")
