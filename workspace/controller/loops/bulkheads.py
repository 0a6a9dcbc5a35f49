"""Runs pieces of work beside each other so that one that is slow or fails holds up no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Hashable
from typing import Any, Generic, TypeVar

from workspace.controller.process.log_events import about

K = TypeVar("K", bound=Hashable)


class Bulkheads(Generic[K]):
    """The work of a task group, at most one piece for each key at a time.

    Errors are logged: what tenants' servers say is input, which must not end the work for all others.
    """

    def __init__(self, group: asyncio.TaskGroup, logger: logging.Logger) -> None:
        self._group, self._logger = group, logger
        self._busy: set[K] = set()

    def __contains__(self, key: K) -> bool:
        """Whether work for a key is under way."""
        return key in self._busy

    def start(self, key: K, work: Coroutine[Any, Any, None], *, failing: str) -> None:
        """Starts work. `failing` is what the log says when it fails."""
        # Now, not in the task, which begins later: a second look at the key may come before.
        self._busy.add(key)
        self._group.create_task(self._run(key, work, failing))

    async def _run(self, key: K, work: Coroutine[Any, Any, None], failing: str) -> None:
        try:
            await work
        except Exception:
            self._logger.exception("%s", failing, extra=about("work failed"))
        finally:
            self._busy.discard(key)
