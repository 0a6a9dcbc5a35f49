"""Names lease holders as people know them: a workspace by its name, a pod by namespace and name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from modelimage.errors import InUse
from weightyard.up.state import all_workspaces

# kubelet's directories of logs: NAMESPACE_NAME_UID.
_POD_LOGS: Final = Path("/var/log/pods")


class HolderNames:
    """The holders of one root, looked up once."""

    def __init__(self, root: Path, pod_logs: Path = _POD_LOGS) -> None:
        self._pod_logs = pod_logs
        self._workspaces: dict[str, str] = {}
        for state in all_workspaces(root):
            for process in (state.supervisor, state.server):
                if process is not None:
                    name = f"process:{process.pid}/{process.start}/{process.boot}"
                    self._workspaces[name] = state.name

    def workspace(self, holder: str) -> str | None:
        """The workspace whose supervisor or server the holder is; None for others."""
        return self._workspaces.get(holder)

    def shown(self, holder: str) -> str:
        """`workspace two`, `pod team/chat-0`, `process 7`; a manual holder as its owner wrote it."""
        name = self.workspace(holder)
        if name is not None:
            return f"workspace {name}"
        kind, _, rest = holder.partition(":")
        if kind == "pod":
            return f"pod {self._pod(rest)}"
        return f"process {rest.partition('/')[0]}" if kind == "process" else rest

    def _pod(self, uid: str) -> str:
        # From a lease: no pattern, and nothing that leaves the directory.
        if not uid.replace("-", "").isalnum():
            return uid
        found = next(self._pod_logs.glob(f"*_{uid}"), None) if self._pod_logs.is_dir() else None
        parts = found.name.split("_") if found else []
        return f"{parts[0]}/{parts[1]}" if len(parts) == 3 else uid


def in_use(error: InUse, holders: Iterable[str], names: HolderNames) -> InUse:
    """The error of a model that can't be removed, with its holders by name and the command that ends them."""
    known = list(dict.fromkeys(names.shown(each) for each in holders))
    if not known:
        return error
    running = sorted({name for each in holders if (name := names.workspace(each))})
    hint = f"Stop it first: weightyard down {' '.join(running)}" if running else error.hint
    head = error.message.partition(" is leased by ")[0]
    return InUse(f"{head} is used by {', '.join(known[:5])}", hint=hint)
