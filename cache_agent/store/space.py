"""Space arithmetic: how much may be written, from stored, promised and free bytes. Pure.

A store counts its own bytes apart from the disk's, so other users of the disk don't count against its budget; it also
keeps a minimum free on the disk, below which the kubelet would evict pods.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from modelimage.errors import InvalidInput

_UNITS: Final = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}  # fmt: skip
_AMOUNT: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:(%)|([kMGT]i?)?B?)")


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount of space: bytes, or a percentage of a filesystem. Written `200GB`, `150Gi`, `80%`."""

    bytes: int = 0
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> Amount:
        """Raises InvalidInput."""
        match = _AMOUNT.fullmatch(text.strip())
        if match is None:
            raise InvalidInput(f"not an amount of space: {text[:40]!r}", hint="Write 200GB or 80%.")
        number, percent, unit = match.groups()
        if percent:
            if float(number) > 100:
                raise InvalidInput(f"more than 100 percent: {text!r}")
            return cls(percent=float(number))
        return cls(bytes=int(float(number) * _UNITS[unit or ""]))

    def of(self, total: int) -> int:
        """The amount in bytes, on a filesystem of `total` bytes."""
        return self.bytes if self.percent is None else int(total * self.percent / 100)

    def __str__(self) -> str:
        return f"{self.bytes}" if self.percent is None else f"{self.percent:g}%"


DEFAULT_BUDGET: Final = Amount(percent=100.0)
DEFAULT_MIN_FREE: Final = Amount(percent=5.0)


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """A store's limits: `budget` for its own bytes, `min_free` to leave free on the disk."""

    budget: Amount = DEFAULT_BUDGET
    min_free: Amount = DEFAULT_MIN_FREE

    def view(self, total: int, free: int, *, own: int = 0, promised: int = 0) -> SpaceView:
        """The space of a store within these limits, on a disk of `total` bytes of which `free` are free."""
        return SpaceView(
            own=own,
            promised=promised,
            disk_total=total,
            disk_free=free,
            budget=self.budget.of(total),
            min_free=self.min_free.of(total),
        )


@dataclass(frozen=True, slots=True)
class SpaceView:
    """A snapshot of a store's space, in bytes.

    `own`: files and partial downloads; `promised`: reserved for running pulls and not written yet.
    """

    own: int
    promised: int
    disk_total: int
    disk_free: int
    budget: int
    min_free: int

    @property
    def headroom(self) -> int:
        """Bytes that can still be reserved; negative when the store is over its limits."""
        by_budget = self.budget - self.own
        by_disk = self.disk_free - self.min_free
        return min(by_budget, by_disk) - self.promised

    def shortfall(self, need: int) -> int:
        """Bytes to free before `need` bytes can be reserved."""
        return max(0, need - self.headroom)


def refusal(need: int, view: SpaceView, can_evict: int, held_by: tuple[str, ...]) -> str:
    """The error message, with needed, available, evictable and held space in one line."""
    holders = f", held by {', '.join(held_by[:5])}" if held_by else ""
    more = f" and {len(held_by) - 5} more" if len(held_by) > 5 else ""
    return (
        f"not enough space: need {human(need)}, have {human(max(0, view.headroom))}, "
        f"evictable {human(can_evict)}{holders}{more} (own {human(view.own)} of a budget of {human(view.budget)}; "
        f"disk has {human(view.disk_free)} free, {human(view.min_free)} of it kept free)"
    )


def human(count: int) -> str:
    """Format bytes for people: 1.5 GB."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while abs(value) >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
