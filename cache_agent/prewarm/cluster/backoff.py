"""How long to wait before trying again: longer each time, never all nodes at the same moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelimage.errors import RateLimited, WeightyardError


@dataclass
class Backoff:
    """Doubles from `first` to `most` seconds, each between half and whole. `random` gives [0, 1)."""

    random: Callable[[], float]
    first: float = 0.5
    most: float = 60.0
    _failures: int = 0

    def after(self, error: WeightyardError) -> float:
        """Seconds to wait after a failure; a server that says how long is believed."""
        self._failures += 1
        if isinstance(error, RateLimited) and error.retry_after is not None:
            return min(error.retry_after, self.most) + self.random() * self.first
        whole = min(self.most, self.first * 2.0 ** min(self._failures - 1, 30))
        return whole * (0.5 + self.random() / 2)

    def reset(self) -> None:
        """It went well."""
        self._failures = 0
