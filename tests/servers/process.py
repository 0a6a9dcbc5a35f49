"""Starts a real server as a child, waits for it on a condition, and stops all that it started.

A wait ends when its condition holds, or when the machine has stood idle for a while: never because it is busy.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeVar

from tests.servers.idle_clock import IdleClock

T = TypeVar("T")
CHECKOUT = Path(__file__).parents[2]
POLL_SECONDS = 0.02
LOG_TAIL = 4000
IDLE_SECONDS = 30.0  # of a machine with nothing to do: what is waited for won't come
STOP_IDLE_SECONDS = 10.0
FAR_ZONE = "<+1245>-12:45"  # a time zone for tests and their children, whatever the machine's is


class ServerFailed(Exception):
    """A real server didn't start, died, or stood still; the message ends with the end of its log."""


def wait_until(
    condition: Callable[[], T | None], *, what: str, idle_seconds: float = IDLE_SECONDS
) -> T:
    """The first true value of `condition`, asked again and again.

    Raises TimeoutError when the machine has had nothing to do for `idle_seconds` in all.
    """
    idle = IdleClock()
    while True:
        value = condition()
        if value:
            return value
        _give_up_after(idle_seconds, idle, what)
        time.sleep(POLL_SECONDS)


async def until(
    condition: Callable[[], T | None], *, what: str, idle_seconds: float = IDLE_SECONDS
) -> T:
    """`wait_until` for a coroutine: the event loop goes on meanwhile."""
    idle = IdleClock()
    while True:
        value = condition()
        if value:
            return value
        _give_up_after(idle_seconds, idle, what)
        await asyncio.sleep(POLL_SECONDS)


def _give_up_after(idle_seconds: float, idle: IdleClock, what: str) -> None:
    if idle() > idle_seconds:
        raise TimeoutError(f"no {what}, and the machine was idle for {idle_seconds:g} s")


def program(name: str) -> str:
    """The path of an installed program. Raises ServerFailed, never skips: a missing program is a broken set-up."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise ServerFailed(f"{name} isn't installed: run `make setup`")
    return found


def child_environment(home: Path, **extra: str) -> dict[str, str]:
    """A small environment for a child: no proxies, no credentials, no settings of the user who runs the tests.

    Its Python imports this checkout, whatever the environment has installed.
    """
    path = filter(None, (extra.pop("PYTHONPATH", ""), str(CHECKOUT)))
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "TZ": FAR_ZONE,
        "PYTHONPATH": os.pathsep.join(path),
        **extra,
    }


class ContextServer:
    """Real programs that run while the context lasts. A subclass says in `_start` what that takes."""

    _stack: ExitStack

    def _start(self, stack: ExitStack) -> None:
        """Start it, and leave on the stack whatever ends it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        # What was started before an error is ended here: `__exit__` isn't called then.
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class ServerProcess:
    """A child in a process group of its own whose output goes to a file; leaving the context stops the group."""

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = Path(command[0]).name
        self.log = log
        self._ended = False
        with log.open("wb") as out:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The child's process id; its process group has the same number."""
        return self._child.pid

    def is_running(self) -> bool:
        """Whether the child itself has not ended."""
        return self._child.poll() is None

    def log_text(self) -> str:
        """Everything the child wrote so far."""
        return self.log.read_text(errors="replace")

    def wait_for(
        self, condition: Callable[[], T | None], *, what: str, idle_seconds: float = IDLE_SECONDS
    ) -> T:
        """`wait_until`, but an early death of the child ends it. Raises ServerFailed with the end of the log."""

        def ready_or_dead() -> tuple[T | None] | None:
            value = condition()
            return (value,) if value or not self.is_running() else None

        try:
            (value,) = wait_until(ready_or_dead, what=what, idle_seconds=idle_seconds)
        except TimeoutError as error:
            raise self._failed(str(error)) from error
        if not value:
            raise self._failed(f"ended with {self._child.returncode} before it gave its {what}")
        return value

    def stop(self, *, idle_seconds: float = STOP_IDLE_SECONDS) -> None:
        """End the child's whole process group: SIGTERM, then SIGKILL for what is left. Calling it twice is fine."""
        if self._ended:
            return  # the group's number may be another's by now
        self._ended = True
        self._signal(signal.SIGTERM)
        try:
            wait_until(lambda: not self.is_running(), what="end", idle_seconds=idle_seconds)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            self._child.wait()
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL the group at once, as a power cut would."""
        self._ended = True
        self._signal(signal.SIGKILL)
        self._child.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return  # the whole group has ended

    def _failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"{self.name}: {what}; its log ends:\n{self.log_text()[-LOG_TAIL:]}")


def run(command: Sequence[str], *, environment: Mapping[str, str]) -> str:
    """Run a client program to its end and return its output. Raises ServerFailed with what it wrote when it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=dict(environment),
        check=False,
    )
    if done.returncode != 0:
        raise ServerFailed(
            f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout
