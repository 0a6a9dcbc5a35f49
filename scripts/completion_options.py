"""Prints what a Tab offers after a dash, for weightyard/completion_options.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import click

from weightyard.cli import SECTIONS, weightyard

_HELP = ("-h", "--help")
Table = dict[str, dict[str, list[str]]]


def table() -> Table:
    """By command and option: the kind of its value (`flag`, `value`, `file`, `dir`), a note, and its choices."""
    context = click.Context(weightyard, info_name="weightyard")
    found: Table = {}
    for _, entries in SECTIONS:
        for entry in entries:
            command = weightyard.get_command(context, entry.name)
            if command is not None:
                found |= dict(_command(command, entry.name, context))
    return found


def _command(
    command: click.Command, name: str, parent: click.Context
) -> Iterator[tuple[str, dict[str, list[str]]]]:
    context = click.Context(command, info_name=name.rpartition(" ")[2], parent=parent)
    # Without click's own `--help`, which is made for the context in which a command is asked first.
    options = {
        option: [_kind(each), _note(each), *_choices(each)]
        for each in command.params
        if isinstance(each, click.Option) and not each.hidden
        for option in (*each.opts, *each.secondary_opts)
        if option not in _HELP
    }
    yield name, options | {key: ["flag", "Show this message and exit"] for key in _HELP}
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None:
                yield from _command(found, f"{name} {child}", context)


def _kind(option: click.Option) -> str:
    if option.is_flag or option.count:
        return "flag"
    if isinstance(option.type, click.Path):
        return "dir" if option.type.dir_okay and not option.type.file_okay else "file"
    # A workspace's file, which may also be a name: a path is the longer one to type.
    return "file" if "--file" in option.opts else "value"


def _note(option: click.Option) -> str:
    """The first sentence of the help: a shell shows one line."""
    return " ".join((option.help or "").split()).partition(". ")[0].rstrip(".")


def _choices(option: click.Option) -> list[str]:
    return [str(each) for each in getattr(option.type, "choices", ())]


def rendered() -> str:
    """The table as the file has it."""
    return json.dumps(table(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(rendered())
