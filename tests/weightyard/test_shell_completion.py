"""What a Tab offers, in each shell, and that it costs few imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from scripts import completion_options
from tests.servers.process import child_environment
from tests.weightyard.local import Terminal
from weightyard import shell_completion
from weightyard.cli import entries, main
from weightyard.cli import weightyard as program
from weightyard.options import ModelName
from weightyard.shell_completion import ARGUMENTS, FILES, OPTIONS, quick

TABLE = Path(shell_completion.__file__).with_name("completion_options.json")
PROGRAM = """
import atexit, sys
from weightyard import cli
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
cli.main()
"""
HEAVY = (
    "pydantic",
    "yaml",
    "urllib3",
    "aiohttp",
    "numpy",
    "rich",
    "cache_agent",
    "workspace",
    "builder",
)


def tab(home: Path, shell: str, *words: str, **extra: str) -> tuple[list[str], list[str]]:
    """The lines that the shell gets for the last word, and the modules that were imported."""
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=child_environment(
            home, _WEIGHTYARD_COMPLETE=f"{shell}_complete", COMP_WORDS=" ".join(("weightyard", *words)),
            COMP_CWORD=words[-1] if shell == "fish" else str(len(words)), **extra,
        ),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return answer.stdout.splitlines(), answer.stderr.split()


@pytest.fixture
def cached(terminal: Terminal, tiny_image: str) -> tuple[Terminal, str]:
    terminal.ok("pull", tiny_image)
    terminal.ok("lease", "take", tiny_image, "--holder", "manual:me")
    return terminal, tiny_image


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_on_this_machine(cached: tuple[Terminal, str], shell: str) -> None:
    terminal, image = cached
    home, root = terminal.directory, {"WEIGHTYARD_ROOT": str(terminal.root)}
    (terminal.root / "up" / "chat").mkdir(parents=True)
    (terminal.root / "up" / "chat" / "state.json").write_text('{"image": "registry.example/m:v1"}')
    (lease,) = json.loads(terminal.ok("lease", "ls", "--json"))
    asked = {
        ("rm", "oci:/"): image, ("down", "ch"): "chat", ("lease", "release", lease["lease"][:2]): lease["lease"],
        ("pull", "--variant", "int8-"): "int8-w8a16", ("do", ): "doctor",
        ("help", "exit-"): "exit-codes", ("help", "bui"): "build",
    }  # fmt: skip
    for words, expected in asked.items():
        lines, modules = tab(home, shell, *words, **root)
        assert any(expected in line.replace("\\", "") for line in lines), (words, lines)
        # The table of exit codes and the interface of progress: a few classes.
        heavy = {each for each in modules if each.split(".")[0] in HEAVY}
        assert heavy <= {"cache_agent", "cache_agent.errors", "builder", "builder.reporter"}, words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("up", "--det"), "--detach"), (("build", "--eng"), "--engine"),
        (("build", "--engine", "llm"), "llm-compressor"),
        (("lease", "take", "--hol"), "--holder"), (("rollout", "status", "--name"), "--namespace"),
        (("render", "--t"), "--to"),
    ],
)  # fmt: skip
def test_options_and_their_choices_import_no_command(
    tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    lines, modules = tab(tmp_path, "bash", *words)
    assert any(expected in line for line in lines)
    assert not [each for each in modules if each.startswith("weightyard.commands.")]


def test_the_table_of_options_is_what_the_commands_have() -> None:
    """Made again by: python scripts/completion_options.py > weightyard/completion_options.json."""
    assert TABLE.read_text() == completion_options.rendered()
    # What click offers, so that a Tab and the command agree.
    context = click.Context(program, info_name="weightyard")
    for name, options in completion_options.table().items():
        if " " not in name:
            command = program.get_command(context, name)
            assert command is not None
            offered = command.shell_complete(click.Context(command, parent=context), "--")
            assert {each.value for each in offered} <= set(options), name


def test_a_value_that_is_a_file_is_the_shells() -> None:
    assert quick(["pull", "--ca-file"], "./c", {}, {}) == [("./c", "file", "")]


def test_bash_splits_words_at_colons(cached: tuple[Terminal, str]) -> None:
    terminal, image = cached
    environ = {"WEIGHTYARD_ROOT": str(terminal.root)}
    path, tag = image.removeprefix("oci:").rsplit(":", 1)
    whole = quick(["rm"], "oci:", {}, environ)
    assert whole is not None
    assert [value for value, _, _ in whole] == [image]
    assert quick(["rm", "oci"], ":", {}, environ) == [(f"{path}:{tag}", "plain", "bf16")]
    assert quick(["rm", "oci", ":", path, ":"], "v", {}, environ) == [(tag, "plain", "bf16")]


def test_a_cache_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    for words in (["rm"], ["down"], ["lease", "release"]):
        assert quick(words, "", {}, {"WEIGHTYARD_ROOT": str(tmp_path / "none")}) == []
        assert quick([*words, "--root", str(tmp_path)], "", {}, {}) == []
    assert not list(tmp_path.iterdir())


def test_no_shell_is_offered_words_that_it_would_run(tmp_path: Path) -> None:
    for name in ("$(reboot)", "a;b", "two words", "`id`", "~root", "a*", "chat"):
        (tmp_path / "up" / name).mkdir(parents=True)
        state = {"image": "a note\nplain\n$(reboot)"}
        (tmp_path / "up" / name / "state.json").write_text(json.dumps(state))
    found = quick(["logs", "--root", str(tmp_path)], "", {}, {})
    assert found == [("chat", "plain", "a note plain $(reboot)")]


def test_the_table_names_commands() -> None:
    named = {words[0] for words in (*ARGUMENTS, *FILES, *OPTIONS)}
    assert named <= set(entries())


def test_a_layout_is_named_alike_by_every_command_on_cached_models() -> None:
    """`oci:./out:v1` is the image that `pull oci:./out:v1` cached, wherever a command takes a model's name."""
    for words in (words for words, source in ARGUMENTS.items() if source is ARGUMENTS["rm",]):
        command: click.Command | None = program
        for word in words:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word)
        assert command
        argument = next(each for each in command.params if isinstance(each, click.Argument))
        assert isinstance(argument.type, ModelName), words


@pytest.mark.parametrize(
    ("word", "command"),
    [("push", "weightyard copy"), ("run", "weightyard up"), ("serve", "weightyard up"), ("images", "weightyard ls"),
     ("list", "weightyard ls")],
)  # fmt: skip
def test_other_programs_words_lead_on(
    word: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, "x"]) == 2
    assert command in capsys.readouterr().err
