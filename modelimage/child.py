"""Runs child programs and kills those that stop making progress, however long the others take. Linux only.

Says how a child that runs Python is started, so that no file of the working directory is imported in a package's place.

On a busy machine a healthy program may get a twentieth of a core, so a limit on its run time would kill it.
Progress is CPU time, bytes read, processes started or ended, and bytes counted by the caller.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from modelimage.errors import TimedOut

# For any interpreter that we start: neither its working directory nor its script's is searched for modules.
# A variable, since older interpreters than 3.11 refuse the option -P.
SAFE_PATH: Final[Mapping[str, str]] = {"PYTHONSAFEPATH": "1"}
# Where this distribution's packages are, in a wheel as in a checkout.
_PACKAGES: Final = Path(__file__).resolve().parents[1]
_RUN_MODULE: Final = (
    "import runpy, sys; sys.path.insert(0, {path!r}); "
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
)
_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
# Positions in /proc/PID/stat after the command's name, see proc(5): parent, then CPU time of itself and its children.
_PARENT: Final = 1
_TIMES: Final = slice(11, 15)
# When the process started, in clock ticks since boot.
START_TIME: Final = 19
# Between two looks at a running program.
_LOOK_SECONDS: Final = 1.0
_KILL_SECONDS: Final = 5.0
# A waiting program also wakes up now and then; activity below these thresholds is not progress.
_WORKING_SHARE: Final = 0.01  # of a core
_READ_BYTES: Final = 1 << 20
# The most of its limit that a stall timer believes of the time between two looks.
_LOOK_SHARE: Final = 0.5


def python_module(module: str) -> list[str]:
    """The command that runs a module of this distribution in this interpreter, from any working directory.

    Like `python -m MODULE`; arguments may follow.
    """
    return [sys.executable, "-P", "-c", _RUN_MODULE.format(path=str(_PACKAGES), module=module)]


@dataclass(frozen=True, slots=True)
class ProcessActivity:
    """Activity of a program and its descendants so far: `cpu` in seconds, `read` and `written` in bytes.

    `written` is counted by the caller, for example the size of a log.
    """

    processes: frozenset[int] = frozenset()
    cpu: float = 0.0
    read: int = 0
    written: int = 0


class StallTimer:
    """Detects a program that has made no progress for `limit` seconds. The clock is injected.

    To be asked a few times within the limit. Time in which it wasn't asked counts little: a watcher that was stopped
    itself, with its container or its machine, says nothing of the program, which was stopped as well.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._looked = clock()
        self._still = 0.0
        self._work = ProcessActivity()

    def stalled(self, work: ProcessActivity) -> bool:
        """Record the work done so far; return whether it has shown no progress for more than `limit` seconds."""
        before, self._looked = self._looked, self._clock()
        self._still += min(self._looked - before, self.limit * _LOOK_SHARE)
        if self._progressed(work):
            self._work, self._still = work, 0.0
        return self._still > self.limit

    def _progressed(self, work: ProcessActivity) -> bool:
        before = self._work
        return (
            # Compared with the last progress, not the last look: many small steps add up to progress.
            work.processes != before.processes
            or work.written != before.written
            or work.cpu - before.cpu >= self.limit * _WORKING_SHARE
            or work.read - before.read >= _READ_BYTES
        )


def work_of(pid: int, *, written: int = 0) -> ProcessActivity:
    """Work of a process and its descendants. An ended process counts only in its parent's CPU times."""
    stats = {
        int(each.name): read_stat(int(each.name)) for each in _PROC.iterdir() if each.name.isdigit()
    }
    children: dict[int, list[int]] = {}
    for each, fields in stats.items():
        if fields:
            children.setdefault(int(fields[_PARENT]), []).append(each)
    # By the parents of now: a process that outlived its parent belongs to init, and isn't found.
    family, found = set[int](), [pid]
    while found:
        each = found.pop()
        family.add(each)
        found += children.get(each, ())
    cpu = sum(int(ticks) for each in family for ticks in (stats.get(each) or ())[_TIMES])
    return ProcessActivity(frozenset(family), cpu / _TICKS, sum(map(_bytes_read, family)), written)


def run_child(
    command: Sequence[str],
    *,
    stall_seconds: float,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and capture its output as text.

    Raises TimedOut when it makes no progress for `stall_seconds`, after killing it and its descendants; OSError when it
    can't be started.
    """
    with ExitStack() as stack:
        # Files, not pipes: a pipe stays open as long as any descendant holds it, such as a daemon left behind.
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write((stdin or "").encode())
        given.seek(0)
        child = subprocess.Popen(command, stdin=given, stdout=out, stderr=err, env=env)
        try:
            _wait(child, Path(command[0]).name, StallTimer(stall_seconds), [out, err])
        except BaseException:
            _kill(child)
            raise
        return subprocess.CompletedProcess(command, child.returncode, _text(out), _text(err))


def _wait(
    child: subprocess.Popen[bytes], name: str, timer: StallTimer, outputs: Sequence[IO[bytes]]
) -> None:
    """Wait for the child's end. Raises TimedOut when it makes no progress."""
    while True:
        try:
            child.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired as late:
            # Output is progress even if it costs less CPU time than the threshold.
            written = sum(os.fstat(each.fileno()).st_size for each in outputs)
            if timer.stalled(work_of(child.pid, written=written)):
                raise TimedOut(f"{name} made no progress for {timer.limit:g} s") from late
        else:
            return


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and its descendants. One that hangs in a driver can't be killed and isn't waited for."""
    # Each process by itself: an engine's workers may have sessions and groups of their own.
    for pid in work_of(child.pid).processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_KILL_SECONDS)


def _text(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")


def read_stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name, see proc(5); None when the process is gone or hidden."""
    try:
        # A program names itself, with any bytes.
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return stat_fields(text)


def stat_fields(text: str) -> list[str]:
    """Parse the text of /proc/PID/stat: the fields after the command's name."""
    # The name is in parentheses and may contain any character, so fields are counted after the last ")".
    return text.rpartition(")")[2].split()


def _bytes_read(pid: int) -> int:
    """Bytes that the process read, from memory or disk; 0 if /proc doesn't let us see it."""
    try:
        lines = (_PROC / str(pid) / "io").read_text().splitlines()
    except OSError:
        return 0
    counts = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
    # `rchar` lacks the page faults of mapped files, `read_bytes` what the page cache answered: with either, the sum
    # grows.
    return counts.get("rchar", 0) + counts.get("read_bytes", 0)
