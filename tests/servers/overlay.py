"""Whether overlay file systems can be stacked on a directory: not where it lies on one itself, as in a container."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path


def takes_overlays(directory: Path) -> bool:
    """Try it, as container runtimes do. Needs root."""
    with tempfile.TemporaryDirectory(prefix="ovl-", dir=directory) as scratch:
        lower, upper, work, merged = (Path(scratch, name) for name in ("l", "u", "w", "m"))
        for each in (lower, upper, work, merged):
            each.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        mounted = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode == 0:
            subprocess.run(["umount", str(merged)], check=True, capture_output=True)
        return mounted.returncode == 0
