"""The progress and failures of each target, in memory, for as long as the target is desired."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.prewarm.values import Failure, FetchTarget, TargetState
from modelimage.digest import Digest
from modelimage.errors import RateLimited, WeightyardError, public_name

FIRST_WAIT: Final = 5.0
LONGEST_WAIT: Final = 300.0


def failure_of(
    error: Exception, *, before: Failure | None, now: float, random: Callable[[], float]
) -> Failure:
    """A failure with exponential backoff. The jitter keeps nodes from retrying at the same time.

    `before`: the last failure, if nothing has succeeded since.
    """
    times, since = (before.times + 1, before.since) if before else (1, now)
    message = error.message if isinstance(error, WeightyardError) else str(error)
    hint = error.hint if isinstance(error, WeightyardError) else None
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(times - 1, 16)) * (0.5 + random() / 2)
    if isinstance(error, RateLimited) and error.retry_after is not None:
        # Not before the server's Retry-After, unless that is longer than our own longest wait.
        wait = min(LONGEST_WAIT, max(wait, error.retry_after))
    text = f"{message}. {hint}" if hint else message
    # Clients decide by it whether waiting helps, and know no other names.
    reason = public_name(error) if isinstance(error, WeightyardError) else type(error).__name__
    return Failure(reason, text, now + wait, since, times)


@dataclass
class Attempts:
    """The state of all targets. `clock` in seconds since the epoch, `random` in [0, 1)."""

    clock: Callable[[], float]
    random: Callable[[], float]
    known: dict[FetchTarget, TargetState] = field(default_factory=dict)
    # The last failure of each, for the backoff. A retry that starts doesn't end the row of failures: a success does.
    _failures: dict[FetchTarget, Failure] = field(default_factory=dict)

    def keep(self, targets: Collection[FetchTarget]) -> None:
        """Forget targets that are no longer desired and have nothing running."""
        self.known = {
            target: known
            for target, known in self.known.items()
            # Entries of running tasks stay, because their results are still to come.
            if target in targets or known.running or known.asking
        }
        self._failures = {t: each for t, each in self._failures.items() if t in self.known}

    def note_held(self, held: Container[Digest]) -> None:
        """End the rows of failures of targets whose models are held: a pod's pull may have brought them."""
        for target in [each for each in self._failures if self.known[each].key in held]:
            del self._failures[target]
            # Its backoff too: a model that is lost later is fetched at once.
            self._change(target, failure=None)

    def without_key(self, targets: Iterable[FetchTarget]) -> list[FetchTarget]:
        """Those that the store hasn't been asked for, or had no model of when it was."""
        return [each for each in targets if self.known.get(each, TargetState()).key is None]

    def last_failure(self, target: FetchTarget) -> Failure | None:
        """The last failure of a target whose model isn't held, also while it is tried again."""
        return self._failures.get(target)

    def set_key(self, target: FetchTarget, key: Digest | None) -> None:
        """Set the model that the store resolves a target to; None when it has none."""
        self._change(target, key=key)

    def asking(self, target: FetchTarget) -> None:
        """A request to its registry is running."""
        self._change(target, asking=True)

    def answered(self, target: FetchTarget, key: Digest | None, need: int) -> None:
        """The registry answered."""
        known = self.known.get(target, TargetState())
        self._change(target, key=key or known.key, need=need, asking=False, failure=None)

    def running(self, target: FetchTarget) -> None:
        """Its fetch began."""
        self._change(target, running=True)

    def fetched(self, target: FetchTarget, key: Digest) -> None:
        """Its fetch succeeded: the model is in the store."""
        self._failures.pop(target, None)
        self.known[target] = TargetState(key)

    def stopped(self, target: FetchTarget) -> None:
        """A fetch was stopped on request. `need` is cleared because part of it has arrived."""
        self._change(target, running=False, need=None)

    def failed(self, target: FetchTarget, error: Exception) -> None:
        """Resolving or fetching failed."""
        failure = self._failures[target] = failure_of(
            error, before=self._failures.get(target), now=self.clock(), random=self.random
        )
        self._change(target, running=False, asking=False, need=None, failure=failure)

    def _change(self, target: FetchTarget, **changes: object) -> None:
        self.known[target] = replace(self.known.get(target, TargetState()), **changes)  # type: ignore[arg-type]
