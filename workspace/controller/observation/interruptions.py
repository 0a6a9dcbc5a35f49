"""What Events tell of nodes that the cloud takes back, in bounded memory.

Karpenter writes `SpotInterrupted` about the Node, and deletes it (`pkg/controllers/interruption` of its AWS provider);
a Node that expires, drifts or is repaired looks the same but for that Event. The API server keeps it for an hour, so a
controller that starts reads it again. Without it a node counts as drained, so one that comes late or never harms none.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]

_REASON: Final = "SpotInterrupted"
# The Events to ask an API server for.
INTERRUPTED_NODES: Final = f"involvedObject.kind=Node,reason={_REASON}"
# Nodes that a cluster loses within an hour.
_MOST_NODES: Final = 10_000
_LONGEST: Final = 64  # characters of a uid, which has 36


@dataclass(slots=True)
class Interruptions:
    """The uids of nodes that the cloud takes back. The oldest are forgotten."""

    _uids: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def put(self, event: Json) -> str | None:
        """Keeps what an Event tells. Returns the name of the node that it is about; None without news."""
        about = event.get("involvedObject") or {}
        uid = about.get("uid")
        if event.get("reason") != _REASON or about.get("kind") != "Node":
            return None
        if not isinstance(uid, str) or not 0 < len(uid) <= _LONGEST or uid in self._uids:
            return None
        self._uids[uid] = None
        if len(self._uids) > _MOST_NODES:
            self._uids.popitem(last=False)
        return str(about.get("name", ""))

    def __contains__(self, uid: str) -> bool:
        return uid in self._uids
