"""Is a lease's holder still there? A lease ends by itself only when its holder is certainly gone.

A pod is there while kubelet keeps its directory or something of it is mounted; a process while the process with its
pid still has the start time that was noted; a manual lease until it is released. What can't be told counts as there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cache_agent.store.values import Holder, HolderKind
from modelimage.descriptor import Platform

KUBELET = Path("/var/lib/kubelet")
# From the kernel's names to those of images.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class ProcessName:
    """The name of a process holder: `pid/start time/boot id`, unique over pid reuse and reboots."""

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
    """What of this machine tells who is there. Paths are injected for tests."""

    proc: Path = Path("/proc")
    kubelet: Path = KUBELET
    architecture: str = field(default_factory=lambda: os.uname().machine)

    @property
    def platform(self) -> Platform:
        """As images name it."""
        return Platform("linux", _ARCHITECTURES.get(self.architecture, self.architecture))

    def boot(self) -> str:
        return (self.proc / "sys/kernel/random/boot_id").read_text().strip()

    def start_time(self, pid: int) -> str | None:
        """When a process started, in clock ticks since boot; None when there is no such process."""
        try:
            stat = (self.proc / str(pid) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return stat.rpartition(")")[2].split()[19]

    def mountinfo(self) -> str:
        return (self.proc / "self/mountinfo").read_text()

    def is_gone(self, holder: Holder) -> bool:
        """Whether a holder is certainly gone. An unreadable /proc or kubelet directory is no certainty."""
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
                    return False
                return name.boot != self.boot() or self.start_time(name.pid) != name.start
            case HolderKind.POD:
                pods = self.kubelet / "pods"
                # Without kubelet's directory this process can't see pods, so it can't say that one is gone.
                return pods.is_dir() and not (pods / holder.name).exists()

    def this_process(self) -> Holder:
        """The holder that this process is."""
        pid = os.getpid()
        return Holder(
            HolderKind.PROCESS, str(ProcessName(pid, self.start_time(pid) or "0", self.boot()))
        )
