"""Group commit: concurrent small changes of the ledger become durable together, with one fsync.

The first thread leads: it runs all waiting changes in one transaction, each in its own savepoint, and commits. Changes
that arrive meanwhile form the next group, led by its first. No thread returns before its change is durable.
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
    """One queued change and its outcome."""

    change: Callable[[], T]
    woken: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    result: list[T] = field(default_factory=list)
    error: BaseException | None = None


class GroupCommit:
    """Groups the changes of one ledger. A thread inside a ledger transaction must not use it: it would deadlock."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # Guards the queue and who leads. Held for moments: the ledger's lock is held during a flush.
        self._lock = threading.Lock()
        self._waiting: list[_Asked[object]] = []
        self._led = False

    def run(self, change: Callable[[], T]) -> T:
        """Run a change and make it durable. Raises what the change raises, rolled back in full."""
        mine: _Asked[T] = _Asked(change)
        with self._lock:
            self._waiting.append(mine)  # type: ignore[arg-type]
            # Decided under the lock: exactly one leader at a time.
            mine.leads, self._led = not self._led, True
        if not mine.leads:
            mine.woken.wait()
        # Checked again: a woken thread either has its result or leads the next group.
        if mine.leads:
            self._lead()
        if mine.error is not None:
            raise mine.error
        return mine.result[0]

    def _lead(self) -> None:
        with self._ledger.writing():
            # The group is taken only after the ledger's lock, so it includes
            # changes queued while another thread held it.
            with self._lock:
                group, self._waiting = self._waiting, []
            try:
                with self._ledger.transaction():
                    for asked in group:
                        self._try(asked)
            except BaseException as error:  # noqa: BLE001 - nothing was committed, so every change of the group failed
                for asked in group:
                    asked.error = asked.error or error
        # Hand the lead over under the lock: a change queued after this must find a leader, or it would wait forever.
        with self._lock:
            following = self._waiting[0] if self._waiting else None
            self._led = following is not None
            if following is not None:
                following.leads = True
        # Only now: a change that returned must be durable.
        for asked in group:
            asked.woken.set()
        if following is not None:
            following.woken.set()

    def _try(self, asked: _Asked[object]) -> None:
        try:
            # A failed change must not roll back the others of its group.
            with self._ledger.savepoint():
                asked.result.append(asked.change())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that queued the change
            asked.error = error
