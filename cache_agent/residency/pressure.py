"""Memory facts of this machine: pressure stall information (PSI), available bytes, and the charged cgroup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Percent of the last ten seconds with tasks stalled on memory; above it, others need the memory more than a warm cache.
DEFAULT_LIMIT: Final = 5.0


def parse_pressure(text: str) -> float:
    """Parse `/proc/pressure/memory`: percent of the last ten seconds in which some tasks waited; 0 without a report."""
    for line in text.splitlines():
        fields = dict(part.split("=", 1) for part in line.split()[1:] if "=" in part)
        if line.startswith("some") and "avg10" in fields:
            return float(fields["avg10"])
    return 0.0


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Reads this machine's memory facts. Paths are injected for tests."""

    proc: Path = Path("/proc")

    def pressure(self) -> float:
        """Percent of the last ten seconds in which some tasks waited for memory."""
        try:
            return parse_pressure((self.proc / "pressure/memory").read_text())
        except OSError:
            return 0.0  # a kernel without PSI has no such file

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
