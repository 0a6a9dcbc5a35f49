"""Renders the CLI reference as Markdown from the commands: `python scripts/cli_docs.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import click

from weightyard.advanced import AdvancedOption, list_advanced
from weightyard.cli import SECTIONS, weightyard
from weightyard.exits import MEANINGS

_INTRODUCTION = """\
# Command line

<!-- Made by `python scripts/cli_docs.py > docs/cli.md`; a test keeps it true. -->

Every command writes its result to stdout and everything else to stderr. These options stand before or after the
command's name:

| Option | Meaning |
|---|---|
| `--json` | The result as one JSON document on stdout; progress, notes and errors as JSON lines on stderr. |
| `-q`, `--quiet` | Results and errors only. |
| `--no-color` | No colours and no progress bars. |

Stdout may be a pipe whose reader goes away (`weightyard ls | head -1`): the command ends without a message, with the
exit code of a program that SIGPIPE ends, 141. A closed stdout (`>&-`) is an error with exit code 9, one whose disk is
full with 10. What can't be written to stderr is lost.

`--help` lists a command's usual options, `--help-all` also its advanced ones.
`weightyard completion bash|zsh|fish` prints a completion script. `WEIGHTYARD_DEBUG=1` shows tracebacks.
"""


def reference() -> str:
    """The whole page."""
    context = click.Context(weightyard, info_name="weightyard")
    parts = [_INTRODUCTION]
    for title, entries in SECTIONS:
        parts.append(f"## {title}\n")
        for entry in entries:
            command = weightyard.get_command(context, entry.name)
            if command is not None:
                parts += _command(command, entry.name, context)
    return "\n".join([*parts, *_exit_codes()])


def _command(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    """A command's section, followed by those of its subcommands."""
    context = click.Context(command, info_name=name, parent=parent)
    context.terminal_width = 100
    yield f"### {context.command_path}\n"
    yield f"```text\n{command.get_usage(context)}\n```\n"
    yield f"{_paragraphs(command.help or '')}\n"
    # Options common to all commands are listed once, at the top of the page.
    shown = [
        p for p in command.params if not (isinstance(p, click.Option) and p.callback is not None)
    ]
    advanced = [p for p in shown if isinstance(p, AdvancedOption)]
    list_advanced(context)
    yield from _options("Option", [p for p in shown if p not in advanced], context)
    yield from _options("Advanced option", advanced, context)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from _command(child, str(child.name), context)


def _options(
    title: str, parameters: Sequence[click.Parameter], context: click.Context
) -> Iterator[str]:
    """A table of the parameters that have a help text."""
    rows = [row for each in parameters if (row := each.get_help_record(context)) and row[1]]
    if rows:
        yield f"| {title} | Meaning |\n|---|---|"
        yield from (f"| `{_cell(names)}` | {_cell(text)} |" for names, text in rows)
        yield ""


def _paragraphs(text: str) -> str:
    """Click's help text as Markdown. A block marked with backspace is preformatted."""
    blocks = []
    for block in text.strip().split("\n\n"):
        lines = [line.strip() for line in block.splitlines()]
        if lines and lines[0] == "\b":
            blocks.append("```text\n" + "\n".join(lines[1:]) + "\n```")
        else:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "The same for every command, with an agent and without one.\n"
    yield "| Code | Meaning | What to do |\n|---|---|---|"
    for code, meaning in sorted(MEANINGS.items()):
        yield f"| {code} | {meaning.what} | {meaning.to_do} |"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(reference())
