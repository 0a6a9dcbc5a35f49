"""Looks at what the page shows while somebody reads it, and tells each reader the changes. No HTTP here.

A reader that comes gets a snapshot, or what it has missed if its last event is still remembered. One that doesn't take
its events is dropped: it comes again by itself, and never holds up the others or takes memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from cache_agent.api.page.view import View, difference
from modelimage.bounds import parse_count
from modelimage.errors import RateLimited

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
MOST_READERS: Final = 16
# Events that are remembered for readers who come again, and those that one may leave in its queue.
_MOST_EVENTS: Final = 64
_MOST_BYTES: Final = 4 << 20
_MOST_NUMBER: Final = 1 << 53
_RETRY_SECONDS: Final = 5.0
_FAILED: Final[View] = {
    "problems": {
        "page": {"where": "this page", "what": "What it shows can't be read now. See the log of this process."}
    }
}  # fmt: skip


def event_bytes(kind: str, number: str, data: Any) -> bytes:
    """One server-sent event. JSON has no line breaks of its own, so its data is one line."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    # A line ends at U+2028 in no version of the protocol, at CR in all: JSON escapes that one.
    return f"event: {kind}\nid: {number}\ndata: {text}\n\n".encode("utf-8", "replace")


class Reader:
    """One open page's queue of events. `drop` is called when it doesn't take them."""

    def __init__(self, drop: Callable[[], None]) -> None:
        self._drop = drop
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._more = asyncio.Event()
        self.dropped = False

    async def next(self) -> bytes | None:
        """The next event; None once the reader was dropped."""
        while not self._waiting and not self.dropped:
            self._more.clear()
            await self._more.wait()
        if self.dropped:
            return None
        event = self._waiting.popleft()
        self._bytes -= len(event)
        return event

    def offer(self, event: bytes) -> None:
        """Queue an event, or drop a reader that has left too many of them."""
        # One event may be larger than all that may wait: a snapshot has no other way.
        full = len(self._waiting) >= _MOST_EVENTS or self._bytes + len(event) > _MOST_BYTES
        if self._waiting and full:
            self.dropped = True
            self._waiting.clear()
            self._drop()
        else:
            self._waiting.append(event)
            self._bytes += len(event)
        self._more.set()


@dataclass(frozen=True, slots=True)
class _Event:
    number: int
    data: bytes


class Feed:
    """One page's events, from looks at intervals of `seconds`. `look` returns a view that nobody changes afterwards."""

    def __init__(
        self, look: Callable[[], Awaitable[View]], *, seconds: float = LOOK_SECONDS,
        most_readers: int = MOST_READERS, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._look, self._seconds, self._sleep = look, seconds, sleep
        self._most_readers = most_readers
        # Numbers begin again when this process does: events of another are never taken for this one's.
        self._name = secrets.token_hex(4)
        self._number = 0
        self._view: View | None = None
        self._snapshot: _Event | None = None
        self._events: deque[_Event] = deque()
        self._readers: set[Reader] = set()
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Look while there are readers, until cancelled."""
        while True:
            await self._wanted.wait()
            await self.look()
            await self._sleep(self._seconds)

    async def look(self) -> None:
        """Look once, and tell every reader what has changed."""
        try:
            view = await self._look()
        except Exception:
            # A bulkhead: the page tells it, and the next look may succeed.
            logger.exception("the page's view can't be made")
            view = {**(self._view or {}), **_FAILED}
        before, self._view = self._view, view
        if before is None:
            self._tell_all_from_the_start()
            return
        change = difference(before, view)
        if change is None:
            return
        self._number += 1
        event = _Event(self._number, event_bytes("change", self._id(self._number), change))
        self._remember(event)
        for reader in tuple(self._readers):
            reader.offer(event.data)

    @contextmanager
    def reading(self, last_id: str, drop: Callable[[], None] = lambda: None) -> Iterator[Reader]:
        """A reader whose last event was `last_id`, empty for a new one. Raises RateLimited when there are too many."""
        if len(self._readers) >= self._most_readers:
            raise RateLimited(
                f"{self._most_readers} pages are open already",
                hint="Close one, or try again.",
                retry_after=_RETRY_SECONDS,
            )
        reader = Reader(drop)
        if self._view is not None:
            for event in self._missed(last_id):
                reader.offer(event)
        self._readers.add(reader)
        self._wanted.set()
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            if not self._readers:
                self._wanted.clear()

    def _tell_all_from_the_start(self) -> None:
        for reader in tuple(self._readers):
            for event in self._missed(""):
                reader.offer(event)

    def _missed(self, last_id: str) -> list[bytes]:
        """What a reader needs after its last event: what was remembered since, or a snapshot."""
        name, _, text = last_id.partition("-")
        number = parse_count(text, most=_MOST_NUMBER) if name == self._name else None
        oldest = self._events[0].number if self._events else self._number + 1
        if number is not None and oldest - 1 <= number <= self._number:
            return [each.data for each in self._events if each.number > number]
        if self._snapshot is None or self._snapshot.number != self._number:
            data = event_bytes("snapshot", self._id(self._number), self._view)
            self._snapshot = _Event(self._number, data)
        return [self._snapshot.data]

    def _remember(self, event: _Event) -> None:
        self._events.append(event)
        while (
            len(self._events) > _MOST_EVENTS or sum(len(e.data) for e in self._events) > _MOST_BYTES
        ):
            self._events.popleft()

    def _id(self, number: int) -> str:
        return f"{self._name}-{number}"
