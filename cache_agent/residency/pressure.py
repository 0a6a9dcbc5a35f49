"""Memory facts of this machine: pressure stall information (PSI), available bytes, and the charged cgroup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Percent of the last ten seconds with tasks stalled on memory; above it, others need the memory more than a warm cache.
DEFAULT_LIMIT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pressure:
    """Percent of the last ten seconds in which some tasks waited for memory."""

    some: float

    @classmethod
    def parse(cls, text: str) -> Pressure:
        """Parse `/proc/pressure/memory`; no pressure where the kernel reports none."""
        for line in text.splitlines():
            fields = dict(part.split("=", 1) for part in line.split()[1:] if "=" in part)
            if line.startswith("some") and "avg10" in fields:
                return cls(float(fields["avg10"]))
        return cls(0.0)


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Reads this machine's memory facts. Paths are injected for tests."""

    proc: Path = Path("/proc")

    def pressure(self) -> Pressure:
        try:
            return Pressure.parse((self.proc / "pressure/memory").read_text())
        except OSError:
            # Kernels without PSI have no such file.
            return Pressure(0.0)

    def available(self) -> int:
        """Bytes available without swapping."""
        for line in (self.proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return 0

    def cgroup(self) -> str:
        """The cgroup charged for pages that this process reads; `/` is the machine itself."""
        try:
            lines = (self.proc / "self/cgroup").read_text().splitlines()
        except OSError:
            return "unknown"
        # cgroup v2 has a single hierarchy, number 0.
        unified = [line.split(":", 2)[2] for line in lines if line.startswith("0::")]
        return unified[0] if unified else "unknown"
