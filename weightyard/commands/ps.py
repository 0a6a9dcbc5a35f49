"""`weightyard ps`: lists the workspaces of this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from weightyard.console import Console, pass_console
from weightyard.options import missing_root, root_option
from weightyard.text import format_duration
from weightyard.up.state import State, all_workspaces, condition, is_running


@click.command()
@click.option(
    "-a", "--all", "everything", is_flag=True, help="Also list those that stopped or failed."
)
@root_option
@pass_console
def ps(console: Console, /, *, everything: bool, root: Path) -> None:
    """List the workspaces that run here: name, model, variant, state, port and uptime."""
    if (missing := missing_root(root, os.environ)) is not None:
        console.say(missing)
    known = all_workspaces(root, lambda error: console.say(error.message))
    shown = [state for state in known if everything or is_running(state)]
    console.table(
        ["name", "model", "variant", "state", "port", "up"],
        [
            (
                s.name,
                s.image,
                s.variant or None,
                condition(s),
                s.port,
                _uptime(s) if is_running(s) else None,
            )
            for s in shown
        ],
        empty="no workspace runs here; start one with `weightyard up WORKSPACE`",
        document=[_document(state) for state in shown],
    )


def _uptime(state: State) -> str:
    return format_duration(max(0.0, time.time() - state.started_at))


def _document(state: State) -> dict[str, object]:
    return {
        "name": state.name, "image": state.image, "variant": state.variant, "state": condition(state),
        "url": state.url, "port": state.port, "key": state.key, "model": state.served_name,
        "startedAt": state.started_at, "readyAt": state.ready_at, "pid": state.supervisor.pid,
        "startup": state.startup,
        "error": state.failure.message if state.failure else None,
    }  # fmt: skip
