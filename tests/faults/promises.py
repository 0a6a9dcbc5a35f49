"""What an agent has promised, as its clients know it: kept promises must hold, unanswered ones may hold or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from modelimage.errors import Busy, InUse, NotFound, RateLimited, WeightyardError

# Answers by which nothing was promised or taken back. Any other error leaves open whether it was.
REFUSALS = (NotFound, InUse, Busy, RateLimited)


@dataclass
class Promises:
    """Leases by id with their model, pinned models, and those of both whose last request had no clear answer."""

    leases: dict[str, str] = field(default_factory=dict)
    pins: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def lease(self, lease_id: str, key: str) -> Iterator[None]:
        """A request for a lease: promised once the body ends well."""
        with self._asking(lease_id):
            yield
            with self.lock:
                self.leases[lease_id] = key

    @contextmanager
    def release(self, lease_id: str) -> Iterator[None]:
        with self._asking(lease_id):
            yield
            with self.lock:
                self.leases.pop(lease_id, None)

    @contextmanager
    def pin(self, key: str, *, pinned: bool) -> Iterator[None]:
        with self._asking(key):
            yield
            with self.lock:
                (self.pins.add if pinned else self.pins.discard)(key)

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        with self.lock:
            known = name not in self.unsure
            self.unsure.add(name)
        clear = False
        try:
            yield
            clear = True
        except WeightyardError as error:
            clear = known and isinstance(error, REFUSALS)
            raise
        finally:
            if clear:
                with self.lock:
                    self.unsure.discard(name)

    def broken(self, leases: dict[str, str], pins: set[str]) -> list[str]:
        """What was promised and isn't there, or is there and was never promised, in words."""
        lost = [
            f"lease {name} on {key} is lost"
            for name, key in self.leases.items()
            if name not in self.unsure and leases.get(name) != key
        ]
        lost += [f"the pin of {key} is lost" for key in self.pins - self.unsure - pins]
        return lost
