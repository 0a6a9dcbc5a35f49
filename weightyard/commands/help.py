"""`weightyard help`: the help of a command, or a topic."""

from __future__ import annotations

import difflib

import click

from weightyard.console import Console, pass_console
from weightyard.topics import TOPICS


@click.command("help")
@click.argument("topic", required=False)
@pass_console
@click.pass_context
def help_command(ctx: click.Context, console: Console, *, topic: str | None) -> None:
    """Show the help of a command, or a topic; without TOPIC, list both.

    \b
    weightyard help build        as `weightyard build --help`
    weightyard help exit-codes   a topic
    """
    root = ctx.find_root()
    if topic is None:
        console.result(
            {"topics": {name: summary for name, (summary, _) in TOPICS.items()}},
            f"{root.get_help()}\n\n{_listed()}",
        )
        return
    if topic in TOPICS:
        text = TOPICS[topic][1]()
        console.result({"topic": topic, "text": text}, text)
        return
    group = root.command
    command = group.get_command(root, topic) if isinstance(group, click.Group) else None
    if command is None:
        names = group.list_commands(root) if isinstance(group, click.Group) else []
        close = difflib.get_close_matches(topic, [*TOPICS, *names], n=1)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        raise click.UsageError(f"No command or topic {topic!r}.{guess}", root)
    text = command.get_help(click.Context(command, info_name=topic, parent=root))
    console.result({"command": topic, "text": text}, text)


def _listed() -> str:
    width = max(map(len, TOPICS))
    lines = [f"  {name.ljust(width)}  {summary}" for name, (summary, _) in TOPICS.items()]
    return "\n".join(["Topics (weightyard help TOPIC):", *lines])
