"""Group commit: small changes of the ledger that threads ask for at once become durable together, by one fsync.

Whoever comes first leads: it runs all that wait in one transaction, each in a savepoint of its own, and commits. What
comes meanwhile waits for the next group, led by its own first. Nobody returns before its change is durable.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cache_agent.store.ledger import Ledger

T = TypeVar("T")


@dataclass
class _Asked(Generic[T]):
    """One change, and how it ended."""

    change: Callable[[], T]
    woken: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    result: list[T] = field(default_factory=list)
    error: BaseException | None = None


class GroupCommit:
    """Groups the changes of one ledger. Not to be used by a thread that is inside one of its transactions."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._waiting: list[_Asked[object]] = []
        self._led = False

    def run(self, change: Callable[[], T]) -> T:
        """Carry a change out, durably. Raises what it raises; then nothing of it is left."""
        mine: _Asked[T] = _Asked(change)
        with self._lock:
            self._waiting.append(mine)  # type: ignore[arg-type]
            mine.leads, self._led = not self._led, True
        if not mine.leads:
            mine.woken.wait()
        if mine.leads:
            self._lead()
        if mine.error is not None:
            raise mine.error
        return mine.result[0]

    def _lead(self) -> None:
        with self._ledger.writing():
            # Taken only now: whoever came while another held the ledger is in.
            with self._lock:
                group, self._waiting = self._waiting, []
            try:
                with self._ledger.transaction():
                    for asked in group:
                        self._try(asked)
            except BaseException as error:  # noqa: BLE001 - nothing was committed: each hears why
                for asked in group:
                    asked.error = asked.error or error
        with self._lock:
            following = self._waiting[0] if self._waiting else None
            self._led = following is not None
            if following is not None:
                following.leads = True
        for asked in group:
            asked.woken.set()
        if following is not None:
            following.woken.set()

    def _try(self, asked: _Asked[object]) -> None:
        try:
            with self._ledger.savepoint():
                asked.result.append(asked.change())
        except BaseException as error:  # noqa: BLE001 - goes to who asked
            asked.error = error
