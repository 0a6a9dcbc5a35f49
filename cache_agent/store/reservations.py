"""Space that is reserved for running pulls: a book in memory of bytes that aren't on the disk yet. No IO.

A pull reserves before its first byte. Each file that it begins converts a part of the reservation into bytes on the
disk; nobody measures the store in between, so that no byte counts twice or nowhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Reservations:
    """Bytes reserved for running pulls and not written yet. Thread-safe."""

    _open: dict[int, int] = field(default_factory=dict)
    _next: int = 0
    # Held for arithmetic alone: running pulls spend while another measures or removes.
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # Taken before all other locks of a store. Reentrant: `reserve` evicts under it.
    _exclusive: threading.RLock = field(default_factory=threading.RLock)
    # Not `_exclusive`: a removal takes long, and running pulls must not wait for it.
    _measure: threading.RLock = field(default_factory=threading.RLock)

    def exclusive(self) -> threading.RLock:
        """The lock to hold from measuring space to reserving it, and while a model's files are removed.

        Two pulls never count the same bytes, and none counts those of a model that is half gone.
        """
        return self._exclusive

    def measuring(self) -> threading.RLock:
        """The lock to hold while the store's bytes are summed up: no reserved byte becomes a stored one meanwhile.

        Taken before the ledger's lock. Who allocates a file holds it too, and takes no other lock of the store.
        """
        return self._measure

    def promised(self) -> int:
        """The sum of all that is reserved and not stored yet."""
        with self._lock:
            return sum(self._open.values())

    def active(self, beside: Reservation | None = None) -> bool:
        """Whether there are reservations other than one."""
        with self._lock:
            return bool(self._open.keys() - ({beside.number} if beside else set()))

    def add(self, need: int) -> Reservation:
        """A new reservation of `need` bytes."""
        with self._lock:
            self._next += 1
            self._open[self._next] = need
            return Reservation(self, self._next)

    def left(self, number: int) -> int:
        """See `Reservation.left`."""
        with self._lock:
            return self._open.get(number, 0)

    def merge(self, number: int, other: int) -> None:
        """See `Reservation.absorb`."""
        with self._lock:
            self._open[number] += self._open.pop(other, 0)

    def spend(self, number: int, size: int) -> None:
        """See `Reservation.storing`."""
        with self._lock:
            if number in self._open:
                # More may be written than was reserved; a negative rest would count as free space.
                self._open[number] = max(0, self._open[number] - size)

    def end(self, number: int) -> None:
        """See `Reservation`."""
        with self._lock:
            self._open.pop(number, None)


@dataclass(frozen=True)
class Reservation:
    """Reserved space. A context manager: the unspent rest is released at the end."""

    _book: Reservations
    number: int

    @property
    def left(self) -> int:
        """Reserved bytes that aren't spent."""
        return self._book.left(self.number)

    @contextmanager
    def storing(self) -> Iterator[Callable[[int], None]]:
        """Around the allocation of a file: yields what to call with the bytes that it added to the store.

        These count as stored from then on and no longer as reserved. To whoever measures it is one step. Short: the
        allocation alone belongs inside, none of the file's bytes.
        """
        with self._book.measuring():
            yield lambda size: self._book.spend(self.number, size)

    def absorb(self, other: Reservation) -> None:
        """Add what another one has left, which ends with it."""
        self._book.merge(self.number, other.number)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._book.end(self.number)
