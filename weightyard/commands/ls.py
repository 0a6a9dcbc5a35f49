"""`weightyard ls`: lists the cached models."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cache_agent.api.wire import ModelView, to_document
from cache_agent.daemon.cache_api import open_cache
from weightyard.console import Console, pass_console
from weightyard.options import ModelName, root_option
from weightyard.text import format_bytes, format_duration
from weightyard.up.holders import HolderNames

_COLUMNS = ("model", "variant", "size", "used", "verified", "held", "image")


@click.command("ls")
@click.argument("model", type=ModelName(), required=False)
@root_option
@pass_console
def ls(console: Console, *, model: str | None, root: Path) -> None:
    """List the cached models, or show one: by key, the beginning of a key, or image."""
    with open_cache(root, create=False) as cache:
        found = [cache.find(model)] if model else cache.models()
    now, names = time.time(), HolderNames(root)
    rows = [_row(each, now, names) for each in found]
    console.table(
        _COLUMNS,
        rows,
        empty="no models; pull one with `weightyard pull IMAGE`",
        document=[to_document(each) for each in found],
    )


def _row(model: ModelView, now: float, names: HolderNames) -> tuple[str, ...]:
    # A workspace has two leases, its supervisor's and its server's.
    held = list(dict.fromkeys(names.shown(lease) for lease in model.leases))
    held += ["pinned"] if model.pinned else []
    return (
        model.key.removeprefix("sha256:")[:12],
        model.variant,
        format_bytes(model.size),
        _ago(model.last_used, now),
        _ago(model.verified, now) if model.verified else "not yet",
        ", ".join(held) or "-",
        ", ".join(model.images),
    )


def _ago(at: float, now: float) -> str:
    return f"{format_duration(max(0.0, now - at))} ago"
