"""`weightyard umount`: unmounts a model mounted by `weightyard mount`."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.daemon.cache_api import open_cache
from cache_agent.mounter.manual import lease_id, unmount_model
from modelimage.errors import NotFound
from weightyard.console import Console, pass_console
from weightyard.options import PathName, root_option


@click.command()
@click.argument("directory", type=PathName(file_okay=False, resolve_path=True))
@root_option
@pass_console
def umount(console: Console, *, directory: Path, root: Path) -> None:
    """Unmount the model at DIRECTORY and end its lease. The directory stays, and so does the model in the cache."""
    # First of all: where no store is, the lease would stay in another one.
    with open_cache(root, create=False) as cache:
        try:
            key = unmount_model(directory)
        except NotFound:
            key = None  # a directory that is gone may have left its lease
        # The lease ends after the mount, never before: mounted files must not be evicted.
        released = cache.release(lease_id(directory))
    if key is None and not released:
        raise NotFound(f"no model is mounted at {directory}", hint="See `weightyard lease ls`.")
    text = f"{directory}: unmounted" if key else f"{directory}: nothing was mounted; lease released"
    console.result({"path": str(directory), "key": str(key) if key else None}, text)
