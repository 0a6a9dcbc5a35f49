"""Identifies processes by pid, start time and boot, from /proc, so that a reused pid is never mistaken.

A server is started as a session leader, so all its child processes can be found and stopped together.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelimage.child import START_TIME, read_stat
from modelimage.errors import InvalidInput, TimedOut

_PROC: Final = Path("/proc")
# Field positions in /proc/PID/stat after the command's name, which is the second (proc(5)).
_STATE, _SESSION = 0, 3
_KILL_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process of one boot. `start` is in clock ticks since that boot. No other process ever equals it."""

    pid: int
    start: int
    boot: str

    def to_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "start": self.start, "boot": self.boot}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ProcessIdentity:
        """Raises KeyError, TypeError or ValueError for an invalid value."""
        return cls(int(value["pid"]), int(value["start"]), str(value["boot"]))


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a live process; None when it doesn't exist or is a zombie."""
    fields = read_stat(pid)
    # A zombie has ended, and is only kept until its parent asks how.
    if fields is None or fields[_STATE] in ("Z", "X"):
        return None
    return ProcessIdentity(pid, int(fields[START_TIME]), _boot())


def own_identity() -> ProcessIdentity:
    """The identity of this process. Raises InvalidInput where /proc doesn't show it."""
    # The identity and not the pid alone: `down` of a later boot must not signal another process.
    me = identify(os.getpid())
    if me is None:
        raise InvalidInput("this process can't be found in /proc", hint="Mount /proc.")
    return me


def is_alive(process: ProcessIdentity) -> bool:
    return identify(process.pid) == process


def session_members(leader: ProcessIdentity) -> list[ProcessIdentity]:
    """The live processes of the session that `leader` opened, the leader included.

    Empty once another process has the leader's pid: a session id is reused only when all its processes are gone.
    """
    # The leader may have ended before its workers, so its absence alone says nothing.
    holder = identify(leader.pid)
    if (holder is not None and holder != leader) or leader.boot != _boot():
        return []
    found = (identify(pid) for pid in _pids() if _session(pid) == leader.pid)
    return [each for each in found if each is not None and each.start >= leader.start]


def send(process: ProcessIdentity, signal_number: signal.Signals) -> bool:
    """Sends a signal to exactly this process; returns False when it is gone.

    The pidfd is opened first and the identity checked after, so the pid can't be reused in between.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    # Checked between opening and signalling: from here on the descriptor names this process, whatever its pid becomes.
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, signal_number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def send_session(leader: ProcessIdentity, signal_number: signal.Signals) -> int:
    """Sends a signal to every process of a session; returns their number."""
    return sum(send(member, signal_number) for member in session_members(leader))


def stop_session(
    leader: ProcessIdentity,
    *,
    grace: float,
    pause: Callable[[], None],
    clock: Callable[[], float],
    hurry: Callable[[], bool] = lambda: False,
) -> bool:
    """Sends SIGTERM to the leader, waits `grace` seconds, then sends SIGKILL to the rest; True if that was needed.

    Only the leader gets SIGTERM: an inference server stops its own workers in order. `pause` waits briefly (and reaps,
    if the caller is the parent); `hurry` ends the grace period early. Raises TimedOut when a process can't be killed.
    """
    send(leader, signal.SIGTERM)
    deadline = clock() + grace
    while session_members(leader):
        if clock() >= deadline or hurry():
            break
        pause()
    killed = send_session(leader, signal.SIGKILL) > 0
    deadline = clock() + _KILL_SECONDS
    # Repeated, since a process may fork between listing and killing.
    while left := session_members(leader):
        if clock() >= deadline:
            raise TimedOut(
                f"processes {', '.join(str(each.pid) for each in left)} don't end",
                hint="They may wait for a device or disk that doesn't answer; see dmesg.",
            )
        pause()
        send_session(leader, signal.SIGKILL)
    return killed


def _session(pid: int) -> int | None:
    fields = read_stat(pid)
    return int(fields[_SESSION]) if fields else None


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
