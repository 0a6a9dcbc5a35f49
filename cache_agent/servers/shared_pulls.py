"""Starts at most one pull for each key, so that many requests for one model share its download."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass, field

from cache_agent.fetch.pull import Pull, StartPull
from cache_agent.fetch.values import PullRequest, PullState


@dataclass
class SharedPulls:
    """The running pulls of one server. Thread-safe."""

    start: StartPull
    _pulls: dict[Hashable, Pull] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def join(self, key: Hashable, request: PullRequest) -> Pull:
        """The running pull of a key; started if there is none. One that has ended is started again."""
        # Looked up and started under one lock, or two requests could both start a pull.
        with self._lock:
            for each, pull in list(self._pulls.items()):
                if pull.state in (PullState.DONE, PullState.FAILED):
                    del self._pulls[each]
            if key not in self._pulls:
                self._pulls[key] = self.start(request)
            return self._pulls[key]
