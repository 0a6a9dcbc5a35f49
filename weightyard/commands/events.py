"""`weightyard events`: shows what happened in this machine's cache lately."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from cache_agent.api.control_client import AgentClient
from cache_agent.api.wire import EventView, to_document
from cache_agent.daemon.cache_api import require_store
from cache_agent.store.paths import StorePaths
from modelimage.errors import NotFound
from weightyard.console import Console, pass_console
from weightyard.options import WholeNumber, root_option
from weightyard.text import format_bytes, one_line

_POLL_SECONDS: Final = 0.5
_LEVELS: Final = ("info", "warning", "error")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Show new ones as they come, until Ctrl-C.")
@click.option(
    "--level", type=click.Choice(_LEVELS), default="info", show_default=True,
    help="Leave out those that are less severe.",
)  # fmt: skip
@click.option("-n", "--tail", type=WholeNumber(min=0), help="Show the last N only; by default all.")
@root_option
@pass_console
def events(console: Console, *, follow: bool, level: str, tail: int | None, root: Path) -> None:
    """Show what this machine's agent did lately: pulls, evictions, damage and repairs, leases that ended.

    The agent remembers the last 1,000 since its start; its log has them all. With --json there is one object a line. In
    a cluster, see also `kubectl get events`.
    """
    client = AgentClient.from_socket(StorePaths(root).socket)
    if client is None:
        require_store(root)
        raise NotFound(
            f"no agent is running on {root}, and without one nothing is remembered",
            hint="Start it with `weightyard agent`.",
        )
    severe = _LEVELS[_LEVELS.index(level) :]
    found = client.events()
    # Filtered before the tail is cut: the last N of a level may be older than the last N of all.
    shown = [each for each in found if each.level in severe]
    _show(console, shown[max(0, len(shown) - tail) :] if tail is not None else shown)
    if not shown:
        console.say(
            "nothing happened yet since the agent's start"
            if not found
            else f"nothing of level {level} or above"
        )
    # Of all events, also hidden ones: else each look would fetch those again.
    newest = found[-1].number if found else 0
    while follow:
        time.sleep(_POLL_SECONDS)
        for each in client.events(newest):
            newest = each.number
            _show(console, [each] if each.level in severe else [])


def _show(console: Console, found: Sequence[EventView]) -> None:
    for each in found:
        console.result(to_document(each), _line(each))


def _line(event: EventView) -> str:
    at = datetime.fromtimestamp(event.at, UTC).astimezone()
    level = "" if event.level == "info" else f"{event.level}: "
    fields = " ".join(
        f"{name}={_value(value)}" for name, value in event.fields.items() if value not in ("", {})
    )
    return f"{at:%H:%M:%S}  {level}{event.text}  {fields}"


def _value(value: object) -> str:
    """A field's value; of a pull's sources, the bytes from each."""
    if isinstance(value, dict):
        return ", ".join(
            f"{format_bytes(size)} from {one_line(name)}" for name, size in value.items()
        )
    return one_line(str(value))
