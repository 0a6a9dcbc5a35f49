"""Threads for questions to registries, shared fairly: by namespaces, by registries, in order of arrival.

A registry that answers slowly holds its own few threads, and those of the namespaces that name it, but never all.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class FairSlots:
    """`total` slots with a thread each, of which no name (a namespace, a registry) holds more than `each`.

    Each may hold a record of 8 MiB; the chart's memory limit of the controller allows the default for all.
    """

    def __init__(self, total: int = 12, each: int = 3) -> None:
        self._total, self._each = total, each
        self._held: Counter[str] = Counter()
        self._taken = 0
        # In order of arrival. Each waits for its own future, because which may start depends on its names.
        self._waiting: dict[asyncio.Future[None], frozenset[str]] = {}
        self._threads = ThreadPoolExecutor(total, thread_name_prefix="images")

    def is_free(self, names: Iterable[str]) -> bool:
        """Whether `run` would start at once."""
        return self._taken < self._total and all(self._held[each] < self._each for each in names)

    async def run(self, names: Iterable[str], work: Callable[[], T]) -> T:
        """Runs `work` in a thread once a slot is free. Law: a name at its limit delays nobody who doesn't use it.

        A cancelled caller returns at once; the slot is free again when the thread is.
        """
        wanted = frozenset(names)
        await self._turn(wanted)
        try:
            running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        # A pool that has been closed refuses work, and nobody would ever free this slot.
        except BaseException:
            self._give_back(wanted)
            raise
        running.add_done_callback(lambda _: self._give_back(wanted))
        # Shielded: a thread can't be cancelled, and its slot must not be free while it works.
        return await asyncio.shield(running)

    def close(self) -> None:
        """Lets idle threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, wanted: frozenset[str]) -> None:
        """Waits until a slot is taken for these names."""
        # Those who wait came first, even if what they wait for has just become free.
        if self.is_free(wanted) and not any(map(self.is_free, self._waiting.values())):
            self._take(wanted)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = wanted
        try:
            await turn
        except asyncio.CancelledError:
            # Given and cancelled at the same moment: the slot goes on to the next.
            if self._waiting.pop(turn, None) is None:
                self._give_back(wanted)
            raise

    def _take(self, names: frozenset[str]) -> None:
        self._taken += 1
        self._held.update(names)

    def _give_back(self, names: frozenset[str]) -> None:
        self._taken -= 1
        self._held.subtract(names)
        self._held += Counter()  # without the names at zero
        self._wake()

    def _wake(self) -> None:
        # Who holds least goes first, then who came first.
        for turn, names in sorted(self._waiting.items(), key=lambda each: self._weight(each[1])):
            # The future of a cancelled waiter is done at once; the waiter takes
            # itself off the list only when it runs.
            if self.is_free(names) and not turn.done():
                del self._waiting[turn]
                self._take(names)
                turn.set_result(None)

    def _weight(self, names: frozenset[str]) -> int:
        return max(self._held[each] for each in names)
