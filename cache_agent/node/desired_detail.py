"""What an agent tells of desired models beyond its NodeCache, to `weightyard explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cache_agent.api.node_cache import DesiredModelStatus

# A Workspace's desired model has its name behind this, so that it doesn't clash with a CachedModel of the same name.
WORKSPACE_PREFIX: Final = "workspace."


def is_named(name: str, text: str) -> bool:
    """Whether a desired model is asked for by its name; a Workspace's also by that of the Workspace."""
    return bool(text) and name in {text, f"{WORKSPACE_PREFIX}{text}"}


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
    """A document that no desired model could be made of. `where`: its file or object; `why`: a sentence, on one line.

    `name` and `image` are what it says of itself, in the spelling of desired models; empty where nothing can be read.
    """

    where: str
    why: str
    name: str = ""
    image: str = ""

    @property
    def message(self) -> str:
        """All of it on one line."""
        # A file may hold many documents; an object has its name already.
        parts = [self.where, *([self.name] if self.name not in ("", self.where) else []), self.why]
        return ": ".join(parts)


@dataclass(frozen=True, slots=True)
class DesiredDetails:
    """All desired models of a node, and the documents that should have been some."""

    models: Sequence[DesiredDetail] = ()
    refused: Sequence[RefusedDocument] = ()
