"""`weightyard logs`: shows the output of a workspace's inference server."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import IO

import click

from modelimage.errors import NotFound
from weightyard.console import Console, pass_console
from weightyard.options import WholeNumber, missing_root, root_option
from weightyard.up.state import WorkspaceDirectory, is_running
from weightyard.up.stop import check_name
from weightyard.workspace_names import WorkspaceName

_POLL = 0.2


@click.command()
@click.argument("name", type=WorkspaceName(), metavar="NAME")
@click.option(
    "-f", "--follow", is_flag=True, help="Follow the log until the workspace stops or Ctrl-C."
)
@click.option(
    "-n", "--tail", type=WholeNumber(min=0), help="Show the last N lines only; by default all."
)
@root_option
@pass_console
def logs(console: Console, /, *, name: str, follow: bool, tail: int | None, root: Path) -> None:
    """Show the server log of the workspace NAME."""
    directory = WorkspaceDirectory(root, check_name(name))
    try:
        log = directory.log.open(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        if (missing := missing_root(root, os.environ)) is not None:
            console.say(missing)
        raise NotFound(
            f"workspace {name!r} has no server log here",
            hint="See `weightyard ps --all`; the log begins after its model is pulled.",
        ) from error
    with log:
        for line in log if tail is None else deque(log, maxlen=tail):
            console.out.write(line)
        if follow:
            _follow(log, directory, console.out)
    console.out.flush()


def _follow(log: IO[str], directory: WorkspaceDirectory, out: IO[str]) -> None:
    while True:
        # Checked before reading: output written just before the end is still read.
        state = directory.read()
        running = state is not None and is_running(state)
        out.write(log.read())
        out.flush()
        if not running:
            return
        time.sleep(_POLL)
