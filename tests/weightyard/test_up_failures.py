"""`up` when things fail: servers that die, grace that ends, killed processes, taken ports, full disks."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.process import wait_until
from tests.weightyard.local import Terminal, alive, gone, kill, workspace


def test_port_in_use(terminal: Terminal, file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = terminal.run("up", str(file), "--port", port)
    assert done.returncode == 12
    assert f"port {port}" in done.stderr
    assert "--port 0" in done.stderr


@pytest.mark.parametrize("mode", [[], ["-d"]])
def test_server_that_dies_early(terminal: Terminal, file: Path, mode: list[str]) -> None:
    """The cause is told, not its echo; the background's words and code are the foreground's."""
    terminal.fake = "dies"
    done = terminal.run("up", *mode, str(file), "--port", "0")
    assert done.returncode == 13
    assert "ended with code 1: ValueError: No available memory for the cache blocks." in done.stderr
    assert "| Traceback (most recent call last):" in done.stderr
    assert "server.log" in done.stderr
    assert terminal.state("tiny") == "failed"
    again = terminal.run("--json", "up", *mode, str(file), "--port", "0")
    assert json.loads(again.stderr.splitlines()[-1])["kind"] == "EngineFailed"
    assert "No available memory" in terminal.ps("--all")[0]["error"]


def test_server_that_dies_later(terminal: Terminal, file: Path) -> None:
    process = terminal.start("up", str(file), "--port", "0")
    terminal.wait_for("tiny", "ready")
    kill(terminal.document("tiny")["server"]["pid"])
    _, err = process.communicate()
    assert process.returncode == 13
    assert "was killed by signal 9" in err
    assert terminal.state("tiny") == "failed"


def test_ctrl_c_while_starting(terminal: Terminal, file: Path) -> None:
    terminal.fake = "slow"
    process = terminal.start("up", str(file), "--port", "0")
    terminal.wait_for("tiny", "starting")
    wait_until(lambda: terminal.document("tiny")["server"], what="server")
    server = terminal.document("tiny")["server"]["pid"]
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert not alive(server)
    assert terminal.state("tiny") == "stopped"


def test_slow_start_becomes_ready(terminal: Terminal, file: Path) -> None:
    terminal.fake = "slow"
    process = terminal.start("up", str(file), "--port", "0")
    terminal.wait_for("tiny", "starting")
    terminal.gate.touch()
    terminal.wait_for("tiny", "ready")
    terminal.ok("down", "tiny")
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


def test_stubborn_server_is_killed_after_its_grace(terminal: Terminal, file: Path) -> None:
    terminal.fake = "stubborn"
    process = terminal.start("up", str(file), "--port", "0", "--grace", "0.5")
    terminal.wait_for("tiny", "ready")
    server = terminal.document("tiny")["server"]["pid"]
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert not alive(server)
    assert terminal.state("tiny") == "stopped"


def test_second_ctrl_c_ends_the_grace(terminal: Terminal, file: Path) -> None:
    terminal.fake = "stubborn"
    process = terminal.start("up", str(file), "--port", "0", "--grace", "600")
    terminal.wait_for("tiny", "ready")
    process.send_signal(signal.SIGINT)
    terminal.wait_for("tiny", "stopping")
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert terminal.state("tiny") == "stopped"


def test_down_ends_the_grace_when_its_time_is_up(terminal: Terminal, file: Path) -> None:
    terminal.fake = "stubborn"
    terminal.ok("up", "-d", str(file), "--port", "0", "--grace", "600")
    server = terminal.document("tiny")["server"]["pid"]
    terminal.ok("down", "tiny", "--timeout", "0.5")
    assert not alive(server)
    assert terminal.state("tiny") == "stopped"


def test_workers_of_the_server_die_with_it(terminal: Terminal, file: Path) -> None:
    terminal.fake = "worker"
    terminal.ok("up", "-d", str(file), "--port", "0", "--grace", "1")
    server = terminal.document("tiny")["server"]["pid"]
    (worker,) = children(server)
    terminal.ok("down", "tiny")
    assert not alive(server)
    assert not alive(worker)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_supervisor_killed_leaves_an_orphan_that_down_stops(terminal: Terminal, file: Path) -> None:
    terminal.ok("up", "-d", str(file), "--port", "0")
    state = terminal.document("tiny")
    kill(state["supervisor"]["pid"])
    wait_until(gone(state["supervisor"]["pid"]), what="end of the supervisor")
    assert terminal.state("tiny") == "orphaned"
    assert "tiny: stopped" in terminal.ok("down", "tiny")
    assert not alive(state["server"]["pid"])


def test_both_killed_is_told_and_can_run_again(terminal: Terminal, file: Path) -> None:
    terminal.ok("up", "-d", str(file), "--port", "0")
    state = terminal.document("tiny")
    for process in ("supervisor", "server"):
        kill(state[process]["pid"])
        wait_until(gone(state[process]["pid"]), what=f"end of the {process}")
    assert terminal.state("tiny") == "died"
    assert terminal.ps() == []
    terminal.ok("up", "-d", str(file), "--port", "0")
    assert terminal.state("tiny") == "ready"


def test_reused_pid_is_never_touched(terminal: Terminal, file: Path) -> None:
    """A state file that names pids which now belong to others: nobody is signalled."""
    terminal.ok("up", "-d", str(file), "--port", "0")
    terminal.ok("down", "tiny")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        state = terminal.document("tiny")
        state["phase"] = "ready"
        for process in ("supervisor", "server"):
            state[process] |= {"pid": innocent.pid}
        (terminal.root / "up/tiny/state.json").write_text(json.dumps(state))
        assert terminal.state("tiny") == "died"
        assert "tiny: not running" in terminal.ok("down", "tiny")
        assert innocent.poll() is None
        innocent.communicate(b"\n")
    assert innocent.returncode == 0


def test_ctrl_c_while_the_registry_stalls(terminal: Terminal) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        image = f"127.0.0.1:{silent.getsockname()[1]}/team/model:v1"
        process = terminal.start(
            "up", str(workspace(terminal.directory, "stuck", image)), "--port", "0"
        )
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        process.communicate()
        connection.close()
    assert process.returncode == 130
    assert terminal.state("stuck") == "stopped"


def test_full_disk_leaves_no_server_behind(terminal: Terminal, file: Path) -> None:
    """The state file can't be replaced any more: the server is stopped all the same."""
    process = terminal.start("up", str(file), "--port", "0")
    terminal.wait_for("tiny", "ready")
    server = terminal.document("tiny")["server"]["pid"]
    # Also root can't write a file where a directory is.
    (terminal.root / "up" / "tiny" / "state.json.new").mkdir()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 9
    assert "can't write" in err
    assert not alive(server)
