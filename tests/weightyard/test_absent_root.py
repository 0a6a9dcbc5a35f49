"""A mistyped --root: commands that bring no model create no store there, and say that there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import click
import pytest

from cache_agent.store.store import is_store
from tests.weightyard.local import FAKE_ENGINE, Terminal, workspace
from weightyard import cli
from weightyard.options import ROOT_VARIABLE

MODEL = "r.example/a/x:v1"


class Kind(Enum):
    """What a command does about a root where nothing is."""

    REFUSES = "says that no store is there"
    ANSWERS = "answers without one"
    CREATES = "creates it"


@dataclass(frozen=True)
class Use:
    """One use of a command, whose exit code is `code`. FILE stands for a workspace's file, DIR for a directory."""

    kind: Kind
    words: tuple[str, ...] = ()
    code: int = 0


def refuses(*words: str) -> Use:
    return Use(Kind.REFUSES, words, 3)


def answers(*words: str, code: int = 0) -> Use:
    return Use(Kind.ANSWERS, words, code)


CREATES = Use(Kind.CREATES)

# Every command that takes --root.
COMMANDS: Mapping[str, Sequence[Use]] = {
    "agent": [CREATES, answers("--print-schema")],
    "check": [refuses(), refuses("--quick"), refuses("--repair")],
    "df": [refuses()],
    "doctor": [answers("--disk-trial", "0", "--facts"), answers("--laptop", "--min-free", "100%", code=20)],
    "down": [answers("x"), answers("--all")],
    "events": [refuses(), refuses("--follow")],
    "explain": [refuses(MODEL)],
    "gc": [refuses("--dry-run"), refuses(), refuses("--free", "1GB")],
    "hf-view": [refuses(MODEL, "DIR")],
    "lease ls": [refuses()],
    "lease release": [refuses("x")],
    "lease take": [refuses(MODEL, "--holder", "Ada")],
    "logs": [answers("x", code=3)],
    "ls": [refuses(), refuses(MODEL)],
    "mount": [CREATES],
    "pin": [refuses(MODEL), refuses(MODEL, "--remove")],
    "prewarm": [CREATES, answers(MODEL, "--dry-run"), answers(MODEL, "--remove", code=3)],
    "ps": [answers(), answers("--all")],
    "pull": [CREATES],
    "render": [answers("FILE", "--to", "up"), answers("FILE", "--to", "compose", code=2)],
    "rm": [refuses(MODEL)],
    "status": [refuses(), refuses(MODEL)],
    "top": [refuses("--once")],
    "umount": [refuses("DIR")],
    "up": [CREATES, answers("FILE", "--dry-run", "--port", "0", "--cpu")],
    "warm": [refuses(MODEL), refuses(MODEL, "--lock")],
}  # fmt: skip


def with_root() -> Iterator[str]:
    """Every command and subcommand that takes --root."""

    def walk(name: str, command: click.Command) -> Iterator[str]:
        if isinstance(command, click.Group):
            for child in command.commands.values():
                yield from walk(f"{name} {child.name}", child)
        elif any("--root" in each.opts for each in command.params):
            yield name

    context = click.Context(cli.weightyard)
    for name in cli.entries():
        command = cli.weightyard.get_command(context, name)
        assert command is not None
        yield from walk(name, command)


def test_every_command_with_a_root_is_listed_here() -> None:
    assert sorted(with_root()) == sorted(COMMANDS)


def uses(*kinds: Kind) -> list[tuple[str, Use]]:
    return [(name, use) for name, each in COMMANDS.items() for use in each if use.kind in kinds]


@pytest.mark.parametrize(
    ("name", "use"),
    uses(Kind.REFUSES, Kind.ANSWERS),
    ids=lambda each: each if isinstance(each, str) else " ".join(each.words) or "-",
)
def test_a_command_that_brings_no_model_creates_nothing(
    name: str,
    use: Use,
    terminal: Terminal,
    tiny_image: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAKE_ENGINE))
    monkeypatch.chdir(terminal.directory)
    file = workspace(terminal.directory, "tiny", tiny_image)
    # Its parents aren't there either.
    absent = terminal.directory / "typo" / "store"
    stands_for = {"FILE": str(file), "DIR": str(terminal.directory / "directory")}
    words = [stands_for.get(word, word) for word in use.words]
    assert cli.main(["--json", *name.split(), *words, "--root", str(absent)]) == use.code
    assert not absent.parent.exists()
    if use.kind is Kind.REFUSES:
        told = capsys.readouterr()
        assert told.out == ""
        error = json.loads(told.err.splitlines()[-1])
        assert (error["kind"], error["message"]) == ("NoStore", f"no store at {absent}")
        for way_out in ("--root", ROOT_VARIABLE, "~/.cache/weightyard/store", "weightyard pull"):
            assert way_out in error["hint"]


def test_a_directory_of_something_else_stays_as_it_is(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever names are in it that a store has too."""
    elsewhere = terminal.directory / "home"
    for name in ("models", "files", "partial", "trash", "up", "prewarm"):
        (elsewhere / name).mkdir(parents=True)
    before = sorted(elsewhere.rglob("*"))
    assert cli.main(["ls", "--root", str(elsewhere)]) == 3
    assert f"no store at {elsewhere}" in capsys.readouterr().err
    assert sorted(elsewhere.rglob("*")) == before


def test_what_brings_a_model_creates_the_store(terminal: Terminal, tiny_image: str) -> None:
    terminal.ok("pull", tiny_image)
    assert is_store(terminal.root)
    assert len(json.loads(terminal.ok("ls", "--json"))) == 1


def test_what_is_desired_of_an_agent_to_come_is_shown(terminal: Terminal) -> None:
    """`prewarm` writes it for the agent, which will create the store."""
    terminal.ok("prewarm", MODEL)
    (row,) = json.loads(terminal.ok("status", "--json"))
    assert row["model"] == "x-v1"


def test_a_workspace_that_failed_before_its_first_pull_is_shown(
    terminal: Terminal, tiny_image: str
) -> None:
    other = {"image": tiny_image, "variant": "int4"}
    file = workspace(terminal.directory, "tiny", tiny_image, model=other)
    assert terminal.run("up", str(file), "--port", "0").returncode == 8
    assert "tiny" in terminal.ok("top", "--once")


def test_a_store_of_which_damage_left_any_part_is_one(terminal: Terminal, tiny_image: str) -> None:
    """Who lost the ledger must still be able to repair the rest."""
    terminal.ok("pull", tiny_image)
    for path in terminal.root.glob("ledger.*"):
        path.unlink()
    assert terminal.run("check", "--repair").returncode == 0
    assert len(json.loads(terminal.ok("ls", "--json"))) == 1


@pytest.mark.parametrize("words", [("ps",), ("down", "x"), ("logs", "x")])
def test_who_asks_for_workspaces_hears_of_a_root_that_is_not_there(
    terminal: Terminal, words: tuple[str, ...]
) -> None:
    """They answer all the same, as of a machine where nothing was started yet."""
    note = f"note: there is no {terminal.root}: check --root and {ROOT_VARIABLE}"
    assert note in terminal.run(*words).stderr
    terminal.extra = {ROOT_VARIABLE: "", "XDG_CACHE_HOME": str(terminal.directory / "cache")}
    assert "note" not in terminal.run(*words).stderr


def test_a_directory_that_may_not_be_read_is_told_as_that(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", denied)
    assert cli.main(["ls", "--root", str(terminal.root)]) == 9
    assert "Permission denied" in capsys.readouterr().err
