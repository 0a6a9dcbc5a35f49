"""`weightyard configure-containerd`: adds this node's mirror to containerd's registries, or removes it."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.servers.mirror.containerd import configure, unconfigure
from modelimage.allowed_registries import PUBLIC_REGISTRIES
from modelimage.errors import InvalidInput
from weightyard.console import Console, pass_console
from weightyard.options import PathName


@click.command("configure-containerd")
@click.argument("directory", type=PathName(file_okay=False))
@click.option("--mirror", metavar="URL", help="The mirror's URL: http://127.0.0.1:5080.")
@click.option(
    "--registry",
    "registries",
    metavar="HOST",
    multiple=True,
    help="A registry to fetch through the mirror. Repeatable.  [default: the well-known public ones]",
)
@click.option("--remove", is_flag=True, help="Remove the mirror; other hosts stay.")
@pass_console
def configure_containerd(
    console: Console,
    *,
    directory: Path,
    mirror: str | None,
    registries: tuple[str, ...],
    remove: bool,
) -> None:
    """Write the mirror into DIRECTORY/<registry>/hosts.toml, before hosts that others configured.

    DIRECTORY is containerd's `config_path`, usually /etc/containerd/certs.d. Running it twice changes nothing.
    """
    if remove:
        changed = unconfigure(directory)
    elif mirror is None or not mirror.startswith(("http://", "https://")):
        raise InvalidInput("no mirror given", hint="Add --mirror http://127.0.0.1:PORT.")
    else:
        changed = configure(directory, registries or PUBLIC_REGISTRIES, mirror.rstrip("/"))
    text = "\n".join(map(str, changed)) or "nothing to change"
    console.result({"changed": [str(path) for path in changed]}, text)
