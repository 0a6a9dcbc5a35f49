"""The cache interface of `up`. It is used only briefly, so that many workspaces share one root.

A running agent owns the cache; otherwise it is opened in this process, used, and closed. A lease held by the server's
own process survives a crash of the supervisor and ends with the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from weightyard.up.process import ProcessIdentity
from workspace.servable import Servable


@dataclass(frozen=True, slots=True)
class Cached:
    """A verified model on disk: its directory and its record."""

    path: Path
    record: Servable


class ModelCache(Protocol):
    """One root's cache."""

    def variants(self, image: str, variant: str | None) -> dict[str, Servable]:
        """The records of an image's variants (or of one), by variant; from the cache when the registry is unreachable.

        Raises NotFound, UnknownVariant, AccessDenied, Unreachable.
        """

    def pull(self, image: str, variant: str | None) -> Cached:
        """Pulls what is missing of a variant (None: the default one), with progress. Raises a pull's errors."""

    def hold(self, model: Cached, process: ProcessIdentity) -> str:
        """Leases the model until the process ends or `release`; returns the lease's id."""

    def release(self, lease: str) -> None:
        """Ends a lease. A missing one is no error."""
