"""`weightyard mount`: mounts a model at a directory without Kubernetes."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.api.wire import LeaseBody, PullBody
from cache_agent.daemon.cache_api import open_cache
from cache_agent.mounter.manual import lease_id, mount_model, shown_at
from modelimage.access import Access
from modelimage.errors import Busy
from weightyard.console import Console, pass_console
from weightyard.options import ModelName, PathName, access_options, root_option
from weightyard.pull_progress import follow


@click.command()
@click.argument("image", type=ModelName())
@click.argument("directory", type=PathName(file_okay=False, resolve_path=True))
@click.option("--variant", metavar="NAME", help="Variant to mount; by default the image's own.")
@root_option
@access_options
@pass_console
def mount(
    console: Console,
    *,
    image: str,
    directory: Path,
    variant: str | None,
    root: Path,
    access: Access,
) -> None:
    """Pull IMAGE into the cache and mount it at DIRECTORY, read-only; it isn't evicted until `weightyard umount`.

    Needs root. Nothing is copied: DIRECTORY shows the cache's own files.
    """
    with open_cache(root, access, create=True) as cache:
        done = follow(console, image, cache.pull(PullBody(image=image, variant=variant)))
        name = lease_id(directory)
        shown = shown_at(directory)
        if shown is not None and str(shown) != done.key:
            raise Busy(
                f"{directory} already has model {shown.short} mounted",
                hint="Run `weightyard umount` there first.",
            )
        # The lease comes before the mount, so that a crash in between leaves a lease too many and
        # not a mount whose files can be evicted.
        held = {lease.id: lease.model for lease in cache.leases()}
        if held.get(name, done.key) != done.key:
            cache.release(name)  # from a mount that a reboot removed
        cache.lease(LeaseBody(model=done.key, holder=f"manual:mount {directory}", id=name))
        try:
            changed = mount_model(Path(done.path), directory)
        except BaseException:
            # An earlier mount's lease stays: this call didn't take it.
            if name not in held:
                cache.release(name)
            raise
    console.say(f"{image} is mounted at {directory}" + ("" if changed else " already"))
    console.result({"path": str(directory), "key": done.key, "changed": changed}, str(directory))
