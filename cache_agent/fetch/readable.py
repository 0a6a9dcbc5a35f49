"""The readable prefix of a file that is still downloading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReadablePrefix:
    """Bytes from the requested position up to `stop` can be read at `path`.

    Open the file immediately: its commit renames it at any time.
    """

    path: Path
    stop: int
