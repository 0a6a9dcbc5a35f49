"""What `up` asks of the cache, and how it is asked: for moments only, so that many workspaces share one root.

The cache belongs to the agent when one runs on the root; else it is opened in this process, used, and closed again. A
lease in the name of the server's own process outlives a crash of the supervisor and ends with the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from weightyard.up.process import ProcessIdentity
from workspace.servable import Servable


@dataclass(frozen=True, slots=True)
class Cached:
    """A model on disk, verified: its directory and what it holds."""

    path: Path
    record: Servable


class ModelCache(Protocol):
    """One root's cache."""

    def variants(self, image: str, variant: str | None) -> dict[str, Servable]:
        """What an image's variants (or one) are, by variant; from the cache when the registry is away.

        Raises NotFound, UnknownVariant, AccessDenied, Unreachable.
        """

    def pull(self, image: str, variant: str | None) -> Cached:
        """Fetch what is missing of a variant (None: the default one), with progress. Raises what a pull raises."""

    def hold(self, model: Cached, process: ProcessIdentity) -> str:
        """Keep the model for as long as the process lives or until `release`; returns the lease's id."""

    def release(self, lease: str) -> None:
        """End a lease; none there is no error."""
