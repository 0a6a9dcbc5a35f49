"""What the scaling loop tells the runner of each Workspace."""

from __future__ import annotations

from dataclasses import dataclass, field

from modelimage.errors import WeightyardError
from workspace.controller.cluster.object_cache import Key


@dataclass(slots=True)
class ReplicaTargets:
    """The scaler's number of replicas per Workspace, and why it can't read a load; the runner reads them."""

    replicas: dict[Key, int] = field(default_factory=dict)
    unread: dict[Key, WeightyardError] = field(default_factory=dict)

    def forget(self, key: Key) -> None:
        """Drop what is known of a Workspace that isn't scaled."""
        self.replicas.pop(key, None)
        self.unread.pop(key, None)
