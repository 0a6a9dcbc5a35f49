"""Starts `weightyard` programs fast: a process that has imported everything forks for each of them.

What runs in the fork is the program itself, `weightyard.cli.main`, in a session of its own, with the preloaded library.
As a program it reads commands from stdin, one JSON line each, and answers with a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.faults.orders import Orders, library
from tests.servers.process import child_environment, wait_until

REPOSITORY = Path(__file__).parents[2]


class Program:
    """One running program. `status` is its exit status once it has ended, negative for a signal."""

    def __init__(self, forks: Forks, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self._forks = forks
        self.status: int | None = None

    def is_running(self) -> bool:
        if self.status is None:
            self.status = self._forks.ask({"wait": self.pid})
        return self.status is None

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        if self.is_running():
            os.killpg(self.pid, number)

    def wait(self, what: str = "end") -> int:
        wait_until(lambda: not self.is_running(), what=f"{what} of a program:\n{self.tail()}")
        assert self.status is not None
        return self.status

    def tail(self) -> str:
        return self.log_text()[-3000:]


class Forks:
    """The process that forks. The context ends it with all that it started."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        environment = child_environment(
            self._home, LD_PRELOAD=str(library()), PYTHONPATH=str(REPOSITORY)
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(
        self, argv: Sequence[str], log: Path, environment: Mapping[str, str], orders: Orders
    ) -> Program:
        command = {
            "argv": list(argv),
            "log": str(log),
            "environment": dict(environment),
            "orders": str(orders.path),
        }
        return Program(self, self.ask({"start": command}), log)

    def ask(self, command: Mapping[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


def _start(command: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, fd in ((0, null), (1, log), (2, log)):
            os.dup2(fd, target)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - not the pipe of commands
        os.environ.clear()
        os.environ.update(command["environment"])
        if ctypes.CDLL(None).faults_use(command["orders"].encode()) != 0:
            raise OSError(ctypes.get_errno(), "no orders")
        from weightyard.cli import main  # noqa: PLC0415

        status = main(command["argv"])
        sys.stdout.flush()
    finally:
        os._exit(status)


def _wait(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _main() -> None:
    # Imported before anything is forked, which is what makes starts fast; no thread may run then.
    import weightyard.commands.agent  # noqa: PLC0415
    import weightyard.commands.check  # noqa: PLC0415
    import weightyard.commands.pull  # noqa: F401, PLC0415

    status: dict[int, int | None] = {}
    for line in sys.stdin:
        command = json.loads(line)
        answer: int | None
        if "start" in command:
            answer = pid = _start(command["start"])
            status[pid] = None
        else:
            pid = command["wait"]
            if status[pid] is None:
                status[pid] = _wait(pid)
            answer = status[pid]
        print(json.dumps(answer), flush=True)
    for pid in (pid for pid, ended in status.items() if ended is None):
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _main()
