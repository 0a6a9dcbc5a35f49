"""The newest events of the node, those that the log has too, for `weightyard events`. In memory only."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from cache_agent.api.wire import EventView
from cache_agent.observability.events import Event, Events
from cache_agent.observability.log_lines import LINES

_MOST: Final = 1000


class RecentEvents(Events):
    """Keeps the newest events. Thread-safe. `clock` returns seconds since the epoch.

    Their numbers rise, from the milliseconds since the epoch at the start: a follower asks for those that it hasn't
    seen, also of an agent that was restarted meanwhile.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: deque[EventView] = deque(maxlen=_MOST)
        self._count = int(clock() * 1000)
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        line = LINES.get(type(event))
        if line is None:
            return
        at, level, fields = self._clock(), line.level_of(event), line.fields(event)
        # The number and the place in the queue are taken together: a follower would miss one that comes late.
        with self._lock:
            self._count += 1
            self._kept.append(
                EventView(number=self._count, at=at, level=level, text=line.text, fields=fields)
            )

    def after(self, number: int) -> list[EventView]:
        """The kept events with higher numbers, the oldest first."""
        with self._lock:
            return [each for each in self._kept if each.number > number]
