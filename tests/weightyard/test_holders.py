"""Who holds a model, as people know it, in tables that fit the terminal and in the error of `rm`."""

from __future__ import annotations

import json
from pathlib import Path

from cache_agent.api.wire import LeaseView
from tests.weightyard.local import Terminal
from weightyard.console import format_table
from weightyard.up.holders import HolderNames


def test_holders_have_names(tmp_path: Path) -> None:
    def shown(holder: str, pod: str = "") -> str:
        lease = LeaseView(id="1", model="sha256:0", holder=holder, since=0, pod=pod)
        return HolderNames(tmp_path).shown(lease)

    assert shown("pod:0f8e-11", "team/chat-0") == "pod team/chat-0"
    assert shown("pod:0f8e-11") == "pod 0f8e-11"
    assert shown("process:7/1/x") == "process 7"
    assert shown("manual:night shift") == "night shift"


def test_a_workspace_is_named_and_stopped(terminal: Terminal, file: Path) -> None:
    terminal.ok("up", "-d", str(file), "--port", "0")
    assert "workspace tiny" in terminal.ok("ls")
    assert "workspace tiny" in terminal.ok("lease", "ls")
    leases = json.loads(terminal.ok("lease", "ls", "--json"))
    assert {each["holder"].split(":")[0] for each in leases} == {"process"}
    (model,) = json.loads(terminal.ok("ls", "--json"))
    done = terminal.run("rm", model["key"])
    assert done.returncode == 17
    assert "is used by workspace tiny" in done.stderr
    assert "weightyard down tiny" in done.stderr
    terminal.ok("down", "tiny")
    terminal.ok("rm", model["key"])


def test_tables_fit_the_terminal() -> None:
    row = ("0123456789ab", "bf16", "registry.example/team/" + "m" * 80, "sha256:" + "0" * 64)
    columns = ("model", "variant", "image", "digest")
    lines = format_table(columns, [row], width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "0123456789ab" in lines[1]
    assert "…" in lines[1]
    # Scripts read whole values, and a narrow terminal still gets the beginnings.
    assert row[3] in format_table(columns, [row])
    assert "0123456789ab" in format_table(columns, [row], width=10)


def test_an_unchanged_build_says_so(terminal: Terminal, tiny_image: str) -> None:
    checkpoint = Path(tiny_image.removeprefix("oci:")).parent / "checkpoint"
    words = ("build", str(checkpoint), "--to", "oci:out:v1")
    built = terminal.ok(*words)
    assert built.startswith("Built")
    # Not a row of the table, whose columns are others.
    assert built.splitlines()[-2:] == ["", "tags: v1, v1-modelpack"]
    assert terminal.ok(*words).startswith("Unchanged:")
    assert json.loads(terminal.ok(*words, "--json"))["unchanged"]


def test_a_group_without_a_command_shows_its_help(terminal: Terminal) -> None:
    assert terminal.ok().startswith("Usage: weightyard")
    assert "release" in terminal.ok("lease")
