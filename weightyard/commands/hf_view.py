"""`weightyard hf-view`: shows a cached model as an HF cache directory of hard links."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.daemon.cache_api import open_cache
from cache_agent.servers.hub.view import make_view
from modelimage import durable
from modelimage.path_rules import RECORD_NAME
from modelimage.record import Record
from weightyard.console import Console, pass_console
from weightyard.options import ModelName, PathName, root_option
from weightyard.text import plural


@click.command("hf-view")
@click.argument("model", type=ModelName())
@click.argument("directory", type=PathName(file_okay=False))
@root_option
@pass_console
def hf_view(console: Console, *, model: str, directory: Path, root: Path) -> None:
    """Make DIRECTORY an HF cache that holds MODEL, for programs that run with HF_HUB_OFFLINE=1.

    MODEL is a key, the beginning of one, or an image, as `weightyard ls` shows them. Files are hard links to the
    cache's, so DIRECTORY must be on the same filesystem; they stay readable when the model is removed from the cache.
    """
    with open_cache(root, create=False) as cache:
        path = Path(cache.find(model).path)
    record_path = path / RECORD_NAME
    with durable.reading(record_path):
        data = record_path.read_bytes()
    view = make_view(directory.absolute(), path, Record.parse(data))
    console.say(
        f"{plural(view.linked, 'file')} linked; use it with HF_HUB_CACHE={directory} HF_HUB_OFFLINE=1"
    )
    document = {
        "repo": view.repo,
        "commit": view.commit,
        "path": str(view.path),
        "linked": view.linked,
    }
    console.result(document, str(view.path))
