"""Times the start of a local workspace's server: the same stages as in a cluster, without node and image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cache_agent.api.kube_objects import timestamp
from workspace.startup import StageName, Startup, TierPart, current_stage, timeline

# Seconds between two looks for the first token: at first, then a share of the time that passed, and when to give up.
_FIRST_LOOK: Final = 2.0
_SHARE: Final = 0.1
_PATIENCE: Final = 3600.0
# Here no scheduler finds a node, and no runtime pulls the server's image.
_OF_CLUSTERS: Final = frozenset({StageName.NODE, StageName.IMAGE})


@dataclass
class StartTimes:
    """Times of one start. `clock` returns seconds since the epoch; `began` is on it."""

    clock: Callable[[], float]
    began: float
    parts: tuple[TierPart, ...] = ()
    _ends: dict[StageName, float] = field(default_factory=dict)
    _next_look: float = 0.0

    def ended(self, stage: StageName) -> None:
        """Note that a stage ends now."""
        self._ends[stage] = self.clock() - self.began

    def logged(self, ends: Mapping[StageName, float]) -> None:
        """Note the ends that the server's log told, on the clock."""
        self._ends |= {stage: at - self.began for stage, at in ends.items()}

    def look_due(self) -> bool:
        """Whether to look for the first token now; from the first health check on."""
        healthy = self._ends.get(StageName.HEALTH)
        if healthy is None or StageName.FIRST_TOKEN in self._ends:
            return False
        now = self.clock() - self.began
        if now < self._next_look or now > healthy + _PATIENCE:
            return False
        self._next_look = now + max(_FIRST_LOOK, _SHARE * (now - healthy))
        return True

    def document(self) -> dict[str, Any]:
        """The start so far, as `Startup` in a Workspace's status."""
        ends = self._ends
        entry = Startup(
            started_at=timestamp(self.began),
            stages=timeline(ends, self.parts),
            current=current_stage(ends, without=_OF_CLUSTERS),
        )
        healthy = entry.ends.get(StageName.HEALTH)
        return entry.model_copy(update={"total": healthy}).to_document()
