"""The directory for a build's intermediate files: converted weights, quantized variants.

One directory per source state, so that an interrupted build finds its own files and never another's; removed once the
build is published. Except during a build, its contents may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelimage import canonical
from modelimage.durable import make_directories, reading, writing


@dataclass(frozen=True, slots=True)
class BuildDir:
    """The working directory of one build."""

    directory: Path

    @classmethod
    def from_locations(cls, root: Path, locations: Mapping[str, Path]) -> BuildDir:
        """The directory under `root` for a source in its current state. Raises NotFound, AccessDenied."""
        # Inode and device as well: a replaced file may have the same size and time.
        state = [[path, *_state(location)] for path, location in sorted(locations.items())]
        return cls(root / hashlib.sha256(canonical.to_bytes(state)).hexdigest()[:24])

    def folder(self, name: str) -> Path:
        """Create a subdirectory if needed, and return it. Raises NotWritable, NoSpace."""
        folder = self.directory / name
        with writing(folder):
            make_directories(folder)
        return folder

    def remove(self) -> None:
        """Remove the directory and its contents; no error if it doesn't exist."""
        with writing(self.directory):
            if self.directory.exists():
                shutil.rmtree(self.directory)


def _state(location: Path) -> tuple[int, int, int, int]:
    with reading(location):
        status = location.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev
