"""Names the holders of leases as people know them: a workspace by its name, a pod by namespace and name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cache_agent.api.wire import LeaseView
from modelimage.errors import InUse
from weightyard.up.state import all_workspaces


class HolderNames:
    """The holders of one root, looked up once."""

    def __init__(self, root: Path) -> None:
        self._workspaces: dict[str, str] = {}
        for state in all_workspaces(root):
            for process in (state.supervisor, state.server):
                if process is not None:
                    name = f"process:{process.pid}/{process.start}/{process.boot}"
                    self._workspaces[name] = state.name

    def workspace(self, lease: LeaseView) -> str | None:
        """The workspace whose supervisor or server the holder is; None for others."""
        return self._workspaces.get(lease.holder)

    def shown(self, lease: LeaseView) -> str:
        """`workspace two`, `pod team/chat-0`, `process 7`; a manual holder as its owner wrote it."""
        return self.named(lease.holder, lease.pod)

    def named(self, holder: str, pod: str = "") -> str:
        """As `shown`, of a holder alone; what is none, such as a pin, as it is."""
        if name := self._workspaces.get(holder):
            return f"workspace {name}"
        kind, colon, rest = holder.partition(":")
        if kind == "pod":
            # Leases from before a loss or an upgrade have its UID alone.
            return f"pod {pod or rest}"
        if kind == "process":
            return f"process {rest.partition('/')[0]}"
        return rest if colon else holder


def in_use(error: InUse, leases: Sequence[LeaseView], names: HolderNames) -> InUse:
    """The error of a model that can't be removed, with its holders by name and the command that ends them."""
    known = list(dict.fromkeys(names.shown(each) for each in leases))
    if not known:
        return error
    running = sorted({name for each in leases if (name := names.workspace(each))})
    hint = f"Stop it first: weightyard down {' '.join(running)}" if running else error.hint
    head = error.message.partition(" is leased by ")[0]
    return InUse(f"{head} is used by {', '.join(known[:5])}", hint=hint)
