"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from weightyard import cli
from weightyard.options import Number


def options(group: click.Group) -> Iterator[tuple[str, click.Parameter]]:
    """Every option and argument of every command, with the command's name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from options(command)
        elif command is not None:
            yield from ((f"{name} {each.opts[0]}", each) for each in command.params)


NUMBERS = {
    name: option
    for name, option in options(cli.weightyard)
    if isinstance(option.type, click.types.FloatParamType)
}


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_not_a_number_is_refused(name: str, text: str) -> None:
    """A gate of nan would never fail, since no comparison with it is true; a wait of inf never ends."""
    with pytest.raises(click.BadParameter):
        NUMBERS[name].type.convert(text, None, None)


def test_there_are_options_with_numbers() -> None:
    assert {"build --max-kl", "up --start-timeout", "down --timeout"} <= NUMBERS.keys()


def test_bounds_hold() -> None:
    assert Number(min=0, max=1).convert("0.5", None, None) == 0.5
    with pytest.raises(click.BadParameter):
        Number(min=0, max=1).convert("2", None, None)


PATHS = {
    name: option for name, option in options(cli.weightyard) if isinstance(option.type, click.Path)
}


@pytest.mark.parametrize("name", PATHS)
def test_an_empty_path_is_not_the_working_directory(name: str) -> None:
    """`--root "$CACHE"` without that variable would make a cache, or remove one, wherever one stands."""
    with pytest.raises(click.BadParameter, match="empty path"):
        PATHS[name].type.convert("", None, None)


def test_there_are_options_with_paths() -> None:
    assert {"rm --root", "sign --key", "mount directory", "agent --config"} <= PATHS.keys()


def test_arguments_are_named_by_one_word() -> None:
    """Click names a choice's argument by its values, in the usage line and in errors."""
    shown = {
        name: option.make_metavar(click.Context(cli.weightyard))
        for name, option in options(cli.weightyard)
        if isinstance(option, click.Argument)
    }
    assert shown["completion shell"] == "SHELL"
    assert not [each for each in shown.values() if "{" in each]
