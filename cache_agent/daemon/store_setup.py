"""Opens a node's store with its settings. Part of the composition root, and all of it that short commands need."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cache_agent.leases.holders import Machine
from cache_agent.leases.usage import users_of
from cache_agent.observability.events import Events
from cache_agent.store.disk import Observer, ignore, total_and_free
from cache_agent.store.roots import Roots
from cache_agent.store.space import SpaceLimits
from cache_agent.store.store import StoreOptions


@dataclass(frozen=True, slots=True)
class StoreParts:
    """A store's collaborators. `clock` is wall time in seconds; `observe` is called before every change of the disk."""

    events: Events = field(default_factory=Events)
    clock: Callable[[], float] = time.time
    observe: Observer = ignore
    boot: str | None = None
    machine: Machine = field(default_factory=Machine)


def available_to_new(root: Path) -> int:
    """The bytes that a store would take that isn't there yet. Raises DiskFailed."""
    # Its filesystem is that of the directory which will hold it.
    above = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    return max(0, SpaceLimits().view(*total_and_free(above)).headroom)


def open_roots(
    root: Path,
    extra_roots: tuple[Path, ...] = (),
    limits: SpaceLimits | None = None,
    parts: StoreParts | None = None,
) -> Roots:
    """Open the store. Raises Busy, NotWritable, DiskFailed, InvalidInput."""
    used = parts or StoreParts()
    return Roots.open(
        root,
        extra_roots,
        StoreOptions(
            limits or SpaceLimits(),
            used.clock,
            observe=used.observe,
            boot=used.boot,
            events=used.events,
            is_gone=used.machine.is_gone,
            users=lambda models: users_of(models, used.machine),
        ),
    )
