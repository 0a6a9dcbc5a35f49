"""Logs the successes and failures of desired models, once each, however often the same plan is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cache_agent.prewarm.values import ModelOutcome


@dataclass
class OutcomeLog:
    """Compares each plan's outcomes with the last logged ones. `note` writes to the log."""

    note: Callable[..., None]
    # (state, reason) by the desired model's name.
    _logged: dict[str, tuple[str, str]] = field(default_factory=dict)

    def report(self, outcomes: Mapping[str, ModelOutcome]) -> None:
        """Log what changed. Only states that last: waiting and fetching would fill the log."""
        self._logged = {name: each for name, each in self._logged.items() if name in outcomes}
        for name, outcome in outcomes.items():
            news = (outcome.state, outcome.reason)
            lasting = outcome.state in ("Ready", "Failed") or outcome.reason == "NoSpace"
            if lasting and self._logged.get(name) != news:
                self._logged[name] = news
                self.note(
                    f"desired model {outcome.state.lower()}",
                    name=name,
                    reason=outcome.reason,
                    message=outcome.message,
                    key=str(outcome.key or ""),
                )
