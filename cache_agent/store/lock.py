"""One process per store, by an advisory lock. The kernel drops it with its process, so a crash leaves no stale lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cache_agent.store.disk import reading
from modelimage.errors import Busy


class StoreLock:
    """Held from construction to `close`. Raises Busy with the holder's pid when another process holds it."""

    def __init__(self, path: Path) -> None:
        with reading(path):
            # No O_TRUNC: the file holds the pid of the current holder.
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise Busy(
                f"the store {path.parent} is open in another process (pid {holder})",
                hint="Talk to that agent (same --root), stop it, or use another --root.",
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Release the lock. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
