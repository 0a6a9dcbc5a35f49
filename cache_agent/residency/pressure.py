"""Whether memory is short, by the kernel's pressure stall information, and whose memory pages are charged to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Tasks stalled on memory for more of the last ten seconds than this: others need it more than a warm cache.
DEFAULT_LIMIT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pressure:
    """Share of the last ten seconds in which some tasks waited for memory, in percent."""

    some: float

    @classmethod
    def parse(cls, text: str) -> Pressure:
        """`/proc/pressure/memory`; no pressure where the kernel doesn't tell."""
        for line in text.splitlines():
            fields = dict(part.split("=", 1) for part in line.split()[1:] if "=" in part)
            if line.startswith("some") and "avg10" in fields:
                return cls(float(fields["avg10"]))
        return cls(0.0)


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Reads this machine's. Paths are injected for tests."""

    proc: Path = Path("/proc")

    def pressure(self) -> Pressure:
        try:
            return Pressure.parse((self.proc / "pressure/memory").read_text())
        except OSError:
            return Pressure(0.0)

    def available(self) -> int:
        """Bytes that could be used without swapping."""
        for line in (self.proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return 0

    def cgroup(self) -> str:
        """The cgroup that pages read by this process are charged to; `/` is the machine itself."""
        try:
            lines = (self.proc / "self/cgroup").read_text().splitlines()
        except OSError:
            return "unknown"
        unified = [line.split(":", 2)[2] for line in lines if line.startswith("0::")]
        return unified[0] if unified else "unknown"
