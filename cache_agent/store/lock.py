"""One process per store, by an advisory lock; and one kind of work at a time within it.

The kernel drops the advisory lock with its process, so a crash leaves no stale lock.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache_agent.store.disk import is_plain_file, reading, status_of
from modelimage.errors import Busy


class WorkGate:
    """Keeps pulls and repairs from running while a store is settled. Thread-safe."""

    def __init__(self) -> None:
        # One condition for both: work that begins and a settling that begins exclude each other in one step.
        self._changed = threading.Condition()
        self._working = 0
        self._settling = False

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work on partials and models while inside; waits for the end of a settling, which is short."""
        with self._changed:
            # Waits instead of failing, unlike `settling`: pulls may come at any time, repairs are asked for.
            self._changed.wait_for(lambda: not self._settling)
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                # Without a notification: nobody waits for this, as a settling fails at once while work is under way.
                self._working -= 1

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Let no work begin while inside. Raises Busy while some is under way."""
        with self._changed:
            if self._working or self._settling:
                raise Busy("pulls or repairs are running", hint="Repeat it when they are done.")
            self._settling = True
        try:
            yield
        finally:
            with self._changed:
                self._settling = False
                self._changed.notify_all()


class StoreLock:
    """Held from construction to `close`. Raises Busy with the holder's pid when another process holds it."""

    def __init__(self, path: Path) -> None:
        with reading(path):
            _clear(path)
            # No O_TRUNC: the file holds the pid of the current holder.
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise Busy(
                f"the store {path.parent} is open in another process (pid {holder})",
                hint="Talk to that agent (same --root), stop it, or use another --root.",
            ) from error
        # Only for the message above: a full filesystem must not keep a store from opening.
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Release the lock. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _clear(path: Path) -> None:
    """Move a link, a directory or a pipe out of the place of the lock: nobody holds it. Raises OSError."""
    if is_plain_file(path) or status_of(path) is None:
        return
    root = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Two that start at once: the second one must not move the first one's lock away.
        fcntl.flock(root, fcntl.LOCK_EX)
        if not is_plain_file(path) and status_of(path) is not None:
            path.rename(path.with_name(f"{path.name}.{os.getpid()}.set-aside"))
    finally:
        os.close(root)
