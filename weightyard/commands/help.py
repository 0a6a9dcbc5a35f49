"""`weightyard help`: the help of a command, or a topic."""

from __future__ import annotations

import difflib

import click

from weightyard.console import Console, pass_console
from weightyard.topics import TOPICS


@click.command("help")
@click.argument("words", metavar="[TOPIC]", nargs=-1)
@pass_console
@click.pass_context
def help_command(ctx: click.Context, console: Console, *, words: tuple[str, ...]) -> None:
    """Show the help of a command, or a topic; without TOPIC, list both.

    \b
    weightyard help build          as `weightyard build --help`
    weightyard help rollout undo   as `weightyard rollout undo --help`
    weightyard help exit-codes     a topic
    """
    root = ctx.find_root()
    if not words:
        console.result(
            {"topics": {name: summary for name, (summary, _) in TOPICS.items()}},
            f"{root.get_help()}\n\n{_listed()}",
        )
        return
    topic = " ".join(words)
    if topic in TOPICS:
        text = TOPICS[topic][1]()
        console.result({"topic": topic, "text": text}, text)
        return
    text = _command(root, words).get_help()
    console.result({"command": topic, "text": text}, text)


def _command(root: click.Context, words: tuple[str, ...]) -> click.Context:
    """The context of the command that the words name. Raises UsageError where there is none."""
    at = root
    for word in words:
        group = at.command
        names = group.list_commands(at) if isinstance(group, click.Group) else []
        command = group.get_command(at, word) if isinstance(group, click.Group) else None
        if command is None:
            topics = [*TOPICS] if at is root else []
            close = difflib.get_close_matches(word, [*topics, *names], n=1)
            guess = f" Did you mean {close[0]!r}?" if close else " `weightyard help` lists them."
            raise click.UsageError(f"No command or topic {' '.join(words)!r}.{guess}", at)
        at = click.Context(command, info_name=word, parent=at)
    return at


def _listed() -> str:
    width = max(map(len, TOPICS))
    lines = [f"  {name.ljust(width)}  {summary}" for name, (summary, _) in TOPICS.items()]
    return "\n".join(["Topics (weightyard help TOPIC):", *lines])
