"""Implements `down`: asks the supervisor to stop, and finishes what it can't. Stopping a stopped one isn't an error."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from modelimage.errors import InvalidInput
from weightyard.up.process import is_alive, send, session_members, stop_session
from weightyard.up.state import State, WorkspaceDirectory

_POLL: Final = 0.1
_CLEANUP_SECONDS: Final = 10.0  # for the supervisor, after its server's grace period


class StopResult(Enum):
    """The result of stopping a workspace."""

    STOPPED = "stopped"
    KILLED = "killed"
    NOT_RUNNING = "not running"


def stop_workspace(
    directory: WorkspaceDirectory,
    *,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> StopResult:
    """Stops a workspace within about `timeout` seconds, then kills what is left. Idempotent.

    Raises InvalidInput for an unreadable state, TimedOut when a process can't be killed.
    """
    state = directory.read()
    if state is None:
        return StopResult.NOT_RUNNING
    signalled = send(state.supervisor, signal.SIGTERM)
    deadline = clock() + timeout
    while is_alive(state.supervisor) and clock() < deadline:
        sleep(_POLL)
    # A second signal ends the grace period: the supervisor kills its server and cleans up.
    if send(state.supervisor, signal.SIGTERM):
        deadline = clock() + _CLEANUP_SECONDS
        while is_alive(state.supervisor) and clock() < deadline:
            sleep(_POLL)
    # A supervisor that doesn't end would keep the lock, and with it the workspace's name.
    killed = send(state.supervisor, signal.SIGKILL)
    # Read again: the server may have been started after the first read.
    orphans = _stop_server(directory.read() or state, clock, sleep)
    if killed or (orphans and signalled):
        return StopResult.KILLED
    return StopResult.STOPPED if signalled or orphans else StopResult.NOT_RUNNING


def _stop_server(state: State, clock: Callable[[], float], sleep: Callable[[float], None]) -> bool:
    """Stops a server that its supervisor left running. Returns whether there was one."""
    if state.server is None or not session_members(state.server):
        return False
    stop_session(state.server, grace=_CLEANUP_SECONDS, pause=lambda: sleep(_POLL), clock=clock)
    return True


def has_processes(directory: WorkspaceDirectory) -> bool:
    """Whether there is something to stop: a supervisor, or a server that one left. Raises InvalidInput."""
    state = directory.read()
    if state is None:
        return False
    return is_alive(state.supervisor) or bool(state.server and session_members(state.server))


def check_name(name: str) -> str:
    """A workspace's name, checked to be safe in a path. Raises InvalidInput."""
    if not name or "/" in name or name.startswith("."):
        raise InvalidInput(f"not a workspace's name: {name!r}", hint="See `weightyard ps`.")
    return name
