"""The timeline of a server's start as a row: of a Workspace's `status.startup`, or of a local server's state. Pure."""

from __future__ import annotations

from typing import Any, Final

from cache_agent.api.page.view import Row

_PARTS: Final = ("name", "seconds", "bytes", "tier")
_NAMES: Final = {
    "version": "version", "pod": "pod", "node": "node", "at": "startedAt", "current": "current", "total": "total",
}  # fmt: skip


def start_row(start: dict[str, Any]) -> Row:
    """One start's row; what isn't known yet is left out."""
    row: Row = {
        name: start[field] for name, field in _NAMES.items() if start.get(field) not in (None, "")
    }
    row["stages"] = [
        {part: each[part] for part in _PARTS if each.get(part) is not None}
        for each in start.get("stages") or ()
    ]
    return row
