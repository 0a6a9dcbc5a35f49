"""Scratch directories that don't outlive their process for long: what a killed one left is removed by the next.

A directory is locked for as long as its process lives, so the lock tells whether anybody uses it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_NEW_SECONDS: Final = 60.0


@contextmanager
def scratch_directory(purpose: str) -> Iterator[Path]:
    """An empty directory in the system's place for temporary files, removed at the end.

    Directories for the same purpose that killed processes of this user left there are removed too.
    """
    prefix = f"{purpose}-"
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_if_left(path)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        lock = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Marks it as in use until the process ends, however it ends: others remove only what they can lock.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock)


def _remove_if_left(path: Path) -> None:
    # Of others, in use, or gone meanwhile.
    with suppress(OSError):
        # Others may put links into that place.
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(lock)
            # One that was just made isn't locked yet.
            is_new = time.time() - status.st_mtime < _NEW_SECONDS
            if status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode) and not is_new:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
        finally:
            os.close(lock)
