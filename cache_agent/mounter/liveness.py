"""A file that says when the mounter last accepted a connection or waited for one, for kubelet's probe.

The mounter has no network, so kubelet can only run a command. The file lets that be a shell's built-ins, instead of a
program that connects: starting Python takes longer than a probe may on a busy node, and kubelet would kill a mounter
that works.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

# Ends with spaces: shells read a number with leading zeros as octal.
_WIDTH: Final = 20


class LivenessFile:
    """Holds the seconds since the machine's start, as in /proc/uptime, of the last beat."""

    def __init__(self, path: Path) -> None:
        """Creates the file. Raises OSError."""
        # The agent may write to this directory too: a link that it left there must not be followed.
        path.unlink(missing_ok=True)
        self._file = os.open(
            path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
        )
        self.beat()

    def beat(self) -> None:
        """Writes the current time. A failure is left to the probe, which then finds an old one."""
        seconds = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        with suppress(OSError):
            os.pwrite(self._file, f"{seconds:<{_WIDTH}}\n".encode(), 0)
