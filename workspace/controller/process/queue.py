"""The work queue: each key at most once at a time, delayed keys when due, soonest first."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys to work on. A key added during its own work is queued again when that is done."""

    def __init__(self) -> None:
        self._waiting: dict[K, None] = {}  # in order of arrival
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._ready = asyncio.Event()

    def add(self, key: K) -> None:
        """Queues a key as soon as possible."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        # Never handed out twice: two passes over one key would act on different observations.
        if key in self._working:
            self._again.add(key)
        else:
            self._waiting[key] = None
            self._ready.set()

    def add_later(self, key: K, seconds: float) -> None:
        """Queues a key after a delay. Of several delays the soonest counts."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self.add, key)

    async def take(self) -> K:
        """The next key; `done` must follow."""
        while not self._waiting:
            self._ready.clear()
            await self._ready.wait()
        # A dict, because it keeps the order and holds each key once. Marked as worked on, no second worker gets it.
        key = next(iter(self._waiting))
        del self._waiting[key]
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Cancels all delayed keys."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._working)
