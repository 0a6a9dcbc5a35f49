"""Logs the successes and failures of desired models, once each, however often the same plan is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cache_agent.prewarm.values import ModelOutcome


@dataclass
class OutcomeLog:
    """Compares each plan's outcomes with the last logged ones.

    `note` writes to the log; `ready` is told the seconds from when a model was desired, or lost, until it was held;
    `failed` is told name, reason and message of one that can't be had.
    """

    note: Callable[..., None]
    monotonic: Callable[[], float]
    ready: Callable[[float], None]
    failed: Callable[[str, str, str], None]
    # (state, reason) by the desired model's name.
    _logged: dict[str, tuple[str, str]] = field(default_factory=dict)
    # Since when each model is desired and isn't held; None while it is.
    _missing: dict[str, float | None] = field(default_factory=dict)

    def report(self, outcomes: Mapping[str, ModelOutcome]) -> None:
        """Log what changed. Only states that last: waiting and fetching would fill the log."""
        self._logged = {name: each for name, each in self._logged.items() if name in outcomes}
        self._missing = {name: at for name, at in self._missing.items() if name in outcomes}
        for name, outcome in outcomes.items():
            self._time(name, held=outcome.state == "Ready")
            news = (outcome.state, outcome.reason)
            lasting = outcome.state in ("Ready", "Failed") or outcome.reason == "NoSpace"
            if lasting and self._logged.get(name) != news:
                self._logged[name] = news
                if outcome.state == "Ready":
                    key = str(outcome.key or "")
                    self.note("desired model held", name=name, message=outcome.message, key=key)
                else:
                    self.failed(name, outcome.reason, outcome.message)

    def missing_seconds(self, name: str) -> float | None:
        """For how long a model has been desired, or lost, and wasn't held; None while it is held, and before a plan."""
        since = self._missing.get(name)
        return None if since is None else self.monotonic() - since

    def _time(self, name: str, *, held: bool) -> None:
        since = self._missing.get(name)
        if not held:
            self._missing[name] = self.monotonic() if since is None else since
        else:
            self._missing[name] = None
            # A model that was there when it was first asked for says nothing of how long one takes.
            if since is not None:
                self.ready(self.monotonic() - since)
