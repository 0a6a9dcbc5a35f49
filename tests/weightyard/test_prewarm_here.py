"""`prewarm` on this machine: each image has a CachedModel of its own, and what is desired comes back when removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cache_agent.net.sockets import is_listening
from cache_agent.store.paths import StorePaths
from tests.servers.process import wait_until
from tests.weightyard.local import Terminal
from weightyard.commands.prewarm import prewarm

PATHS = (
    "r.example/a/x:v1",
    "r.example/b/x:v1",
    "s.example/a/x:v1",
    "s.example/a/x-v1",
    "r.example/a.x:v1",
)


def run(root: Path, *words: str) -> str:
    done = CliRunner().invoke(prewarm, ["--root", str(root), *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout + done.stderr


def desired(root: Path) -> dict[str, str]:
    """The images that are desired, by the names of their documents."""
    found = {}
    for path in (root / "prewarm").glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        assert document["metadata"]["name"] == path.stem
        found[path.stem] = document["spec"]["image"]
    return found


def test_no_image_takes_the_place_of_another(tmp_path: Path) -> None:
    for image in PATHS:
        run(tmp_path, image)
    run(tmp_path, PATHS[0], "--variant", "int4")
    run(tmp_path, PATHS[1], "--pin")
    names = desired(tmp_path)
    assert sorted(names.values()) == sorted([*PATHS, PATHS[0]])
    # A name alone is enough where it is no other's.
    assert names["x-v1"] == PATHS[0]
    for image in (*PATHS[1:], PATHS[0]):
        run(tmp_path, image, "--remove")
    assert list(desired(tmp_path)) == ["x-v1-int4"]


def test_a_given_name_moves_on_and_says_from_what(tmp_path: Path) -> None:
    run(tmp_path, PATHS[0], "--name", "chat")
    assert "was" not in run(tmp_path, PATHS[0], "--name", "chat", "--pin")
    assert f"chat was {PATHS[0]} before" in run(tmp_path, "r.example/a/x:v2", "--name", "chat")
    assert desired(tmp_path) == {"chat": "r.example/a/x:v2"}


def test_a_dry_run_asks_nobody(tmp_path: Path) -> None:
    document = yaml.safe_load(
        run(tmp_path, PATHS[0], "--dry-run", "--cluster", "--kubeconfig", "none")
    )
    assert document["metadata"]["name"] == "x-v1"


@pytest.mark.parametrize("with_agent", [False, True])
def test_who_brings_a_removed_model_back_is_named(
    terminal: Terminal, tiny_image: str, with_agent: bool
) -> None:
    terminal.ok("pull", tiny_image)
    if with_agent:
        terminal.start("agent")
        wait_until(lambda: is_listening(StorePaths(terminal.root).socket), what="the agent")
    terminal.ok("prewarm", tiny_image, "--name", "chat", *(["--wait"] if with_agent else []))
    removed = terminal.run("--json", "rm", tiny_image)
    assert json.loads(removed.stdout)[0]["desired_by"] == ["chat"]
    assert "CachedModel chat" in removed.stderr
    terminal.ok("prewarm", tiny_image, "--name", "chat", "--remove")
