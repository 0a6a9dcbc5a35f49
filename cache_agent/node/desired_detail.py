"""What an agent tells of desired models beyond its NodeCache, to `weightyard explain`."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True, order=True)
class RefusedDocument:
    """A document that no desired model could be made of. `message` begins with its file's or object's name.

    `name` and `image` are what it says of itself; empty where it says nothing that can be read.
    """

    message: str
    name: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class DesiredDetails:
    """All desired models of a node, and the documents that should have been some."""

    models: Sequence[DesiredDetail] = ()
    refused: Sequence[RefusedDocument] = ()
