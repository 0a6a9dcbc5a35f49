"""Child programs, watched for progress: one that stands still is given up, one that is merely slow never is.

On a busy machine a healthy program may get a twentieth of a core, so a limit in seconds since its start would end it.
What counts instead is what it does: CPU time, bytes read, processes started or ended, and what the caller adds. Linux.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from modelimage.errors import TimedOut

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
# Positions in /proc/PID/stat behind the command's name, see proc(5): parent, then CPU time of its own and of children.
_PARENT: Final = 1
_TIMES: Final = slice(11, 15)
_LOOK_SECONDS: Final = 1.0
# What is less than this is the stirring of a program that waits.
_WORKING_SHARE: Final = 0.01  # of a core
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """What a program and its descendants have done so far: `cpu` in seconds, `read` and `written` in bytes.

    `written` is for the caller: the size of a log, say.
    """

    processes: frozenset[int] = frozenset()
    cpu: float = 0.0
    read: int = 0
    written: int = 0


class StallTimer:
    """Says when a program has stood still for `limit` seconds. The clock is injected."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._since = clock()
        self._work = Work()

    def stalled(self, work: Work) -> bool:
        """Note what has been done; whether it is `limit` seconds since that last showed progress."""
        if self._progressed(work):
            self._work, self._since = work, self._clock()
        return self._clock() - self._since > self.limit

    def _progressed(self, work: Work) -> bool:
        before = self._work
        return (
            work.processes != before.processes
            or work.written != before.written
            or work.cpu - before.cpu >= self.limit * _WORKING_SHARE
            or work.read - before.read >= _READ_BYTES
        )


def work_of(pid: int, *, written: int = 0) -> Work:
    """What the process and its descendants have done. Those that have ended count as far as their parents know."""
    family, cpu, read = {pid}, 0.0, 0
    stats = {int(each.name): _stat(each) for each in _PROC.iterdir() if each.name.isdigit()}
    for each in sorted(stats):  # parents are nearly always older, and so have lower numbers
        fields = stats[each]
        if fields and (each in family or int(fields[_PARENT]) in family):
            family.add(each)
            cpu += sum(map(int, fields[_TIMES])) / _TICKS
            read += _bytes_read(each)
    return Work(frozenset(family), cpu, read, written)


def run_child(
    command: Sequence[str],
    *,
    stall_seconds: float,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, its output captured as text.

    Raises TimedOut when it stands still for `stall_seconds` (it is killed then), OSError when it can't be started.
    """
    # Not a pipe: a communicate() that timed out can't go on sending what was left of its input.
    with tempfile.TemporaryFile() as given:
        given.write((stdin or "").encode())
        given.seek(0)
        return _watched(command, given, environment, stall_seconds)


def _watched(
    command: Sequence[str],
    stdin: IO[bytes],
    environment: Mapping[str, str] | None,
    stall_seconds: float,
) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        command,
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment,
    ) as child:  # fmt: skip
        try:
            out, err = _communicate(child, StallTimer(stall_seconds))
        except subprocess.TimeoutExpired as stalled:
            child.kill()
            name = Path(command[0]).name
            raise TimedOut(f"{name} has done nothing for {stall_seconds:g} s") from stalled
        except BaseException:
            child.kill()
            raise
        return subprocess.CompletedProcess(command, child.returncode, out, err)


def _communicate(child: subprocess.Popen[str], timer: StallTimer) -> tuple[str, str]:
    """What the child wrote, once it has ended. Raises TimeoutExpired when it stands still."""
    while True:
        try:
            return child.communicate(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired as late:
            written = len(late.output or b"") + len(late.stderr or b"")
            if timer.stalled(work_of(child.pid, written=written)):
                raise


def _stat(process: Path) -> list[str] | None:
    try:
        text = (process / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may hold anything, so fields are counted from its end.
    return text.rpartition(")")[2].split()


def _bytes_read(pid: int) -> int:
    """Bytes that the process asked for, from memory or disk; 0 where that isn't ours to see."""
    try:
        lines = (_PROC / str(pid) / "io").read_text().splitlines()
    except OSError:
        return 0
    counts = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
    return counts.get("rchar", 0) + counts.get("read_bytes", 0)
