"""Advanced options: left out of `--help`, listed by `--help-all`, and completed like all others."""

from __future__ import annotations

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from weightyard import cli
from weightyard.advanced import AdvancedOption
from weightyard.settings import COMMON, settings

# Lines of a common terminal window.
SCREEN = 45


def commands() -> list[tuple[str, click.Command]]:
    context = click.Context(cli.weightyard)
    found = ((name, cli.weightyard.get_command(context, name)) for name in cli.entries())
    return [(name, command) for name, command in found if command is not None]


def flags(text: str) -> set[str]:
    """The first spelling of each option that a help page lists."""
    listed = text.partition("\nOptions:\n")[2].splitlines()
    lines = (line.split() for line in listed if line.startswith("  -"))
    return {words[0].rstrip(",") for words in lines}


def page(*arguments: str) -> str:
    result = CliRunner().invoke(cli.weightyard, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", list(cli.entries()))
def test_the_help_of_a_command_fits_a_screen(name: str) -> None:
    assert len(page(name, "--help").splitlines()) <= SCREEN


def test_advanced_options_are_listed_by_help_all_only() -> None:
    for name, command in commands():
        advanced = [each for each in command.params if isinstance(each, AdvancedOption)]
        usual, full = flags(page(name, "--help")), flags(page(name, "--help-all"))
        assert ("--help-all" in usual) == bool(advanced)
        assert full - usual == {each.opts[0] for each in advanced}, name


@pytest.mark.parametrize(("name", "flag"), [("agent", "--peers-zone"), ("build", "--base")])
def test_advanced_options_are_completed(name: str, flag: str) -> None:
    complete = ShellComplete(cli.weightyard, {}, "weightyard", "_WEIGHTYARD_COMPLETE")
    assert flag in [each.value for each in complete.get_completions([name], flag[:5])]


def test_common_settings_exist() -> None:
    assert {each.name for each in settings()} >= COMMON
