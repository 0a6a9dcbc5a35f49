"""What of a file may be read while it is still on its way. A value; who knows it is the pull that brings the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReadablePrefix:
    """Bytes up to `stop` (from where one asked) are at `path`. The file may be renamed at any time: open it soon."""

    path: Path
    stop: int
