"""`weightyard down`: stops workspaces of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import click

from weightyard.console import Console, pass_console
from weightyard.options import Number, missing_root, root_option
from weightyard.up.state import WorkspaceDirectory, all_workspaces, is_running
from weightyard.up.stop import StopResult, check_name, has_processes, stop_workspace
from weightyard.workspace_names import WorkspaceName


@click.command()
@click.argument("names", nargs=-1, type=WorkspaceName(), metavar="[NAMES]...")
@click.option("--all", "everything", is_flag=True, help="Stop all that run here.")
@click.option(
    "--timeout", type=Number(min=0), default=40.0, show_default=True,
    help="Seconds that the server may take to stop before it is killed.",
)  # fmt: skip
@root_option
@pass_console
def down(
    console: Console, /, *, names: tuple[str, ...], everything: bool, timeout: float, root: Path
) -> None:
    """Stop the workspaces NAMES, or those of files, and their servers. Stopping one that doesn't run isn't an error."""
    if everything == bool(names):
        raise click.UsageError("name the workspaces to stop, or give --all")
    if (missing := missing_root(root, os.environ)) is not None:
        console.say(missing)
    wanted = [s.name for s in all_workspaces(root) if is_running(s)] if everything else names
    outcomes = {}
    for name in wanted:
        directory = WorkspaceDirectory(root, check_name(name))
        if not has_processes(directory):
            outcomes[name] = StopResult.NOT_RUNNING.value
            continue
        with console.progress(f"stopping {name}"):
            outcomes[name] = stop_workspace(directory, timeout=timeout).value
    lines = [f"{name}: {outcome}" for name, outcome in outcomes.items()]
    console.result(outcomes, "\n".join(lines or ["no workspace runs here"]))
