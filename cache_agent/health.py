"""Is this node's cache usable now? Named checks, each a problem in words or None."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cache_agent.store.store import Store
from modelimage.errors import WeightyardError


@dataclass(frozen=True)
class Health:
    """Readiness of one agent. `parts` are further checks by name."""

    store: Store
    parts: Mapping[str, Callable[[], str | None]]

    def checks(self) -> dict[str, str | None]:
        """Every check by name: None when all is well, else what is wrong."""
        return {
            "store": self._store_writable(),
            "ledger": self._ledger_readable(),
            **{name: check() for name, check in self.parts.items()},
        }

    def _store_writable(self) -> str | None:
        root = self.store.paths.root
        return None if os.access(root, os.W_OK | os.X_OK) else f"{root} can't be written"

    def _ledger_readable(self) -> str | None:
        try:
            self.store.file_count()
        except WeightyardError as error:
            return error.message
        return None
