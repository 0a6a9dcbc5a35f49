"""Exponential backoff with jitter, so that nodes don't retry at the same moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelimage.errors import RateLimited, WeightyardError


@dataclass
class JitteredBackoff:
    """Delays that double from `first` to `most` seconds, each times 0.5 to 1. `random` returns [0, 1)."""

    random: Callable[[], float]
    first: float = 0.5
    most: float = 60.0
    _failures: int = 0

    def after(self, error: WeightyardError) -> float:
        """The delay in seconds after a failure. A server's Retry-After takes precedence, up to `most`."""
        self._failures += 1
        if isinstance(error, RateLimited) and error.retry_after is not None:
            return min(error.retry_after, self.most) + self.random() * self.first
        whole = min(self.most, self.first * 2.0 ** min(self._failures - 1, 30))
        return whole * (0.5 + self.random() / 2)

    def reset(self) -> None:
        """Start again from `first`, after a success."""
        self._failures = 0
