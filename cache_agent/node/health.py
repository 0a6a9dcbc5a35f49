"""Readiness of the node's cache: named checks, each returns a problem in words or None."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cache_agent.store.roots import Roots
from modelimage.errors import WeightyardError


@dataclass(frozen=True)
class Health:
    """Readiness of one agent. `parts` are further checks by name."""

    roots: Roots
    parts: Mapping[str, Callable[[], str | None]]

    def checks(self) -> dict[str, str | None]:
        """Run every check; None for a passed one, else the problem."""
        return {
            "store": self._stores_writable(),
            "ledger": self._ledgers_readable(),
            **{name: check() for name, check in self.parts.items()},
        }

    def _stores_writable(self) -> str | None:
        for problem in self.roots.left_out.values():
            return problem
        for store in self.roots.stores:
            if not os.access(store.paths.root, os.W_OK | os.X_OK):
                return f"{store.paths.root} can't be written"
        return None

    def _ledgers_readable(self) -> str | None:
        try:
            self.roots.files.count()
        except WeightyardError as error:
            return error.message
        return None
