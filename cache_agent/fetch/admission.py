"""Gathers the complete small files of one pull, to admit them in groups: one flush and one transaction for each group.

Each file alone would cost several flushes, which for thousands of files is nearly all of a pull's time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from cache_agent.store.files import StoreFiles
from cache_agent.store.publisher import CompletedFile

# Larger files are admitted as soon as they are complete: other pulls may wait for them.
SMALL_FILE_BYTES: Final = 1 << 20
# Each member of a group holds a descriptor.
GROUP_FILES: Final = 256


class AdmissionGroup:
    """The small files of one pull that are complete and not admitted yet. Thread-safe."""

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        # Every worker of the pull takes it for each small file, so nothing slow happens under it.
        self._lock = threading.Lock()
        self._waiting: list[tuple[CompletedFile, Callable[[], None]]] = []

    def add(self, completed: CompletedFile, admitted: Callable[[], None]) -> None:
        """Admit a file with the next group. `admitted` is called when it is in the store. Raises as `flush`."""
        with self._lock:
            self._waiting.append((completed, admitted))
            if len(self._waiting) < GROUP_FILES:
                return
        self.flush()

    def flush(self) -> None:
        """Admit the files that wait. Raises DigestMismatch, DiskFailed, NoSpace."""
        with self._lock:
            group, self._waiting = self._waiting, []
        # Outside the lock: the files are made durable, and workers go on adding meanwhile.
        self._files.admit([completed for completed, _ in group])
        for _, admitted in group:
            admitted()
