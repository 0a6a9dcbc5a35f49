"""Liveness of lease holders. A lease ends by itself only when its holder is certainly gone.

A pod exists while the kubelet keeps its directory or something in it is mounted; a process while its pid still has the
recorded start time; a manual lease until it is released. In doubt, the holder exists.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cache_agent.store.values import Holder, HolderKind
from modelimage.child import START_TIME, stat_fields
from modelimage.descriptor import Platform

KUBELET = Path("/var/lib/kubelet")
# Kernel architecture names to image architecture names.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class ProcessName:
    """The name of a process holder: `pid/start time/boot id`, unique across pid reuse and reboots."""

    pid: int
    start: str
    boot: str

    @classmethod
    def parse(cls, name: str) -> ProcessName | None:
        parts = name.split("/")
        if len(parts) != 3 or not parts[0].isdigit():
            return None
        return cls(int(parts[0]), parts[1], parts[2])

    def __str__(self) -> str:
        return f"{self.pid}/{self.start}/{self.boot}"


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts of this machine that show which holders exist. Paths are injected for tests."""

    proc: Path = Path("/proc")
    kubelet: Path = field(default_factory=lambda: KUBELET)
    architecture: str = field(default_factory=lambda: os.uname().machine)

    @property
    def platform(self) -> Platform:
        """This machine's platform, in the names of images."""
        return Platform("linux", _ARCHITECTURES.get(self.architecture, self.architecture))

    def boot(self) -> str:
        return (self.proc / "sys/kernel/random/boot_id").read_text().strip()

    def start_time(self, pid: int) -> str | None:
        """Start time of a process in clock ticks since boot; None when there is no such process.

        Raises OSError when /proc can't be read or parsed.
        """
        try:
            # A command's name may hold any bytes.
            text = (self.proc / str(pid) / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat_fields(text)
        if len(fields) <= START_TIME:
            raise OSError(f"/proc/{pid}/stat has only {len(fields)} fields")
        return fields[START_TIME]

    def mountinfo(self) -> str:
        return (self.proc / "self/mountinfo").read_text(errors="replace")

    def is_gone(self, holder: Holder) -> bool:
        """Whether a holder is certainly gone. Unreadable /proc or kubelet directories prove nothing."""
        try:
            return self._is_gone(holder)
        except OSError:
            return False

    def _is_gone(self, holder: Holder) -> bool:
        match holder.kind:
            case HolderKind.MANUAL:
                return False
            case HolderKind.PROCESS:
                name = ProcessName.parse(holder.name)
                if name is None:
                    # A malformed name proves nothing.
                    return False
                # After a reboot, and after reuse, a pid is another process.
                return name.boot != self.boot() or self.start_time(name.pid) != name.start
            case HolderKind.POD:
                pods = self.kubelet / "pods"
                # Without the kubelet's directory this process can't see any pod, so it must not declare one gone.
                return pods.is_dir() and not (pods / holder.name).exists()
