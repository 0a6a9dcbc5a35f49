"""The phases of a local workspace, as a transition table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Phase(Enum):
    """A workspace's phase, as in the state file and in `weightyard ps`."""

    PULLING = "pulling"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        return self in (Phase.STOPPED, Phase.FAILED)


class Event(Enum):
    """An event in a workspace's life."""

    CACHED = "the model is verified on disk"
    HEALTHY = "the server answers its health check"
    ASKED_TO_STOP = "Ctrl-C, `weightyard down` or a signal"
    GONE = "no process of the server is left"
    BROKE = "an error, or the server's death"


TRANSITIONS: Final[Mapping[tuple[Phase, Event], Phase]] = {
    (Phase.PULLING, Event.CACHED): Phase.STARTING,
    (Phase.PULLING, Event.ASKED_TO_STOP): Phase.STOPPING,
    (Phase.PULLING, Event.BROKE): Phase.FAILED,
    (Phase.STARTING, Event.HEALTHY): Phase.READY,
    (Phase.STARTING, Event.ASKED_TO_STOP): Phase.STOPPING,
    (Phase.STARTING, Event.BROKE): Phase.FAILED,
    (Phase.READY, Event.ASKED_TO_STOP): Phase.STOPPING,
    (Phase.READY, Event.BROKE): Phase.FAILED,
    # A second request shortens the grace period, and changes no phase.
    (Phase.STOPPING, Event.ASKED_TO_STOP): Phase.STOPPING,
    (Phase.STOPPING, Event.GONE): Phase.STOPPED,
    (Phase.STOPPING, Event.BROKE): Phase.FAILED,
}


def after(phase: Phase, event: Event) -> Phase:
    """The next phase. Raises ValueError for an event that is impossible in a phase: a bug."""
    following = TRANSITIONS.get((phase, event))
    if following is None:
        raise ValueError(f"{event.name} can't happen while {phase.value}")
    return following
