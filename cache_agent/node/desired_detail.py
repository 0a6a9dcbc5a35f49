"""What an agent tells of one desired model beyond its NodeCache, to `weightyard explain`."""

from __future__ import annotations

from dataclasses import dataclass

from cache_agent.api.node_cache import DesiredModelStatus


@dataclass(frozen=True, slots=True)
class DesiredDetail:
    """A desired model's status, and its times in seconds since the epoch.

    `since`: when the first of `failures` in a row was, else since when it has been desired or lost and not held; 0 if
    unknown. `retry_at`: when it is tried again; it may have passed. In no NodeCache: each attempt would be a write.
    """

    status: DesiredModelStatus
    since: float = 0.0
    failures: int = 0
    retry_at: float | None = None
