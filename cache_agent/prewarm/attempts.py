"""What was tried for each target and how it went: in memory, for as long as it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.prewarm.values import Failure, Known, Target
from modelimage.digest import Digest
from modelimage.errors import RateLimited, WeightyardError

FIRST_WAIT: Final = 5.0
LONGEST_WAIT: Final = 300.0


def failure_of(error: Exception, *, times: int, now: float, random: Callable[[], float]) -> Failure:
    """An error as something to try again: later each time, and not all nodes at once."""
    message = error.message if isinstance(error, WeightyardError) else str(error)
    hint = error.hint if isinstance(error, WeightyardError) else None
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(times - 1, 16)) * (0.5 + random() / 2)
    if isinstance(error, RateLimited) and error.retry_after is not None:
        wait = min(LONGEST_WAIT, max(wait, error.retry_after))
    text = f"{message}. {hint}" if hint else message
    return Failure(type(error).__name__, text, now + wait)


@dataclass
class Attempts:
    """`clock` in seconds since the epoch, `random` in [0, 1)."""

    clock: Callable[[], float]
    random: Callable[[], float]
    known: dict[Target, Known] = field(default_factory=dict)
    _failures: dict[Target, int] = field(default_factory=dict)

    def keep(self, targets: Collection[Target]) -> None:
        """Forget what nobody wants and nothing runs for."""
        self.known = {
            target: known
            for target, known in self.known.items()
            if target in targets or known.running or known.asking
        }
        self._failures = {t: n for t, n in self._failures.items() if t in self.known}

    def means(self, target: Target, key: Digest | None) -> None:
        """The store knows which model a target is."""
        self._change(target, key=key)

    def asking(self, target: Target) -> None:
        """Its registry is being asked."""
        self._change(target, asking=True)

    def answered(self, target: Target, key: Digest | None, need: int) -> None:
        """The registry told."""
        known = self.known.get(target, Known())
        self._change(target, key=key or known.key, need=need, asking=False, failure=None)

    def running(self, target: Target) -> None:
        """It is being fetched."""
        self._change(target, running=True)

    def fetched(self, target: Target, key: Digest) -> None:
        """It is in the store."""
        self._failures.pop(target, None)
        self.known[target] = Known(key)

    def stopped(self, target: Target) -> None:
        """A fetch ended early on request; how much is missing has to be asked again."""
        self._change(target, running=False, need=None)

    def failed(self, target: Target, error: Exception) -> None:
        """Asking or fetching failed."""
        self._failures[target] = self._failures.get(target, 0) + 1
        failure = failure_of(
            error, times=self._failures[target], now=self.clock(), random=self.random
        )
        self._change(target, running=False, asking=False, need=None, failure=failure)

    def _change(self, target: Target, **changes: object) -> None:
        self.known[target] = replace(self.known.get(target, Known()), **changes)  # type: ignore[arg-type]
