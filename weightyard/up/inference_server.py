"""An inference server as a child process: starts it, watches it until healthy, stops it with its children.

Its output goes directly to a file, so it never blocks on a pipe or dies with a reader.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from modelimage.child import SAFE_PATH, StallTimer, work_of
from modelimage.errors import EngineFailed, TimedOut
from modelimage.spans import traceparent
from modelimage.tcp_listener import check_free, listen_tcp
from modelimage.trace_headers import VARIABLE
from weightyard.up.process import ProcessIdentity, identify, stop_session
from weightyard.up.stages import BOOTING, cause, last_words
from workspace.engine_log import EngineLog, stage_of
from workspace.launch_plan import LaunchPlan
from workspace.server_metrics import has_generated

POLL: Final = 0.2  # seconds
_LOOK: Final = 5.0  # seconds between two measurements of the server's progress
_TAIL_BYTES: Final = 1 << 20
_LAST_LINES: Final = 12


class Stopped(Exception):
    """A stop was requested while the server was starting."""


class Server:
    """One running server. Its first process leads its own session."""

    def __init__(
        self, child: subprocess.Popen[bytes], plan: LaunchPlan, log: Path, url: str
    ) -> None:
        self._child = child
        self._plan = plan
        self._log = log
        self._offset = 0
        self.log_times = EngineLog()
        self.url = url
        identity = identify(child.pid)
        if identity is None:
            raise self.death()
        self.identity: ProcessIdentity = identity

    def wait_until_healthy(
        self,
        *,
        describe: Callable[[str], None],
        stopped: Callable[[], bool],
        stall_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Blocks until the health check succeeds, and reports the stages. A slow start is never cut short.

        Raises Stopped, EngineFailed when the server exits, TimedOut without any progress for `stall_seconds`.
        """
        stall, looked = StallTimer(stall_seconds, clock), clock()
        describe(BOOTING)
        while not self._healthy():
            if stopped():
                raise Stopped
            if self.exited(POLL):
                raise self.death()
            if clock() - looked >= min(_LOOK, stall_seconds / 3):
                looked = clock()
                self._check_progress(stall)
            for stage in self._new_stages():
                describe(stage)
        # The last lines too: the first health check may come before they are read.
        self._new_stages()

    def has_generated(self) -> bool:
        """Whether the server's metrics count a token."""
        return has_generated(read_page(self.url, "/metrics"))

    def _check_progress(self, stall: StallTimer) -> None:
        work = work_of(self.identity.pid, written=self._log.stat().st_size)
        if stall.stalled(work):
            raise TimedOut(
                f"the server makes no progress: for {stall.limit:g} s it has written no log "
                "and hardly read or used the CPU",
                hint=f"See its log: {self._log}. If it only needs more time, raise --start-timeout.",
            )

    def exited(self, timeout: float) -> bool:
        """Whether the first process has exited, after waiting up to `timeout` seconds."""
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def death(self) -> EngineFailed:
        """The error for a server that exited, from its exit code and its log."""
        # The tail only: a server that logged for days has a log of gigabytes, and the cause is at its end.
        lines = read_tail(self._log)
        code = self._child.poll()
        how = (
            f"was killed by signal {-code}"
            if code is not None and code < 0
            else f"ended with code {code}"
        )
        words = [f"  | {line}" for line in last_words(lines, _LAST_LINES)]
        head = f"the {self._plan.engine.value} server {how}"
        reason = cause(lines)
        return EngineFailed(
            "\n".join([f"{head}: {reason}" if reason else head, *words]),
            hint=f"The whole log is in {self._log}",
        )

    def stop(self, *, grace: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Stops the server and its children; True when they had to be killed. Idempotent."""
        return stop_session(
            self.identity,
            grace=grace,
            pause=self._pause,
            clock=time.monotonic,
            hurry=hurry,
        )

    def _pause(self) -> None:
        if self.exited(POLL):
            # The leader is reaped, so waiting for it returns immediately; its children may take
            # longer.
            time.sleep(POLL / 10)

    def _healthy(self) -> bool:
        return answers(self.url, self._plan.probes.path)

    def _new_stages(self) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(self._offset)
            data = log.read(_TAIL_BYTES)
        # Only complete lines: the rest is read again. Progress bars end their lines with \r.
        whole = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        self._offset += len(whole)
        lines = whole.decode(errors="replace").replace("\r", "\n").splitlines()
        # Stamped here: vLLM's own times are whole seconds, and other engines' have another form.
        now = time.time()
        for line in lines:
            self.log_times.read(now, line)
        return [stage for line in lines if (stage := stage_of(line))]


def start(
    plan: LaunchPlan, *, program: Sequence[str], host: str, log: Path, environ: Mapping[str, str]
) -> Server:
    """Starts the server and returns immediately. Raises Busy when the port is taken, EngineFailed."""
    # Otherwise another server on this port would pass the health check.
    check_port(host, plan.port)
    # vLLM continues the trace of its parent, where its own tracing is on.
    parent = traceparent()
    traced = {VARIABLE: parent, "OTEL_SERVICE_NAME": plan.name} if parent else {}
    given = {each.name: each.value or "" for each in plan.env}
    environment = {**environ, **SAFE_PATH, **traced, **given}
    # Truncated: the cause of an end is read from this log, and must not be an earlier start's.
    with log.open("wb") as output:
        try:
            child = subprocess.Popen(
                [*program, *plan.args],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C reaches the supervisor alone, and the
                # server's children are found by it.
                env=environment, cwd=log.parent, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise EngineFailed(f"can't start {program[0]}: {error.strerror}") from error
    return Server(child, plan, log, url=f"http://{reachable(host)}:{plan.port}")


def check_port(host: str, port: int) -> None:
    """Raises Busy when the port is taken, InvalidInput when it can't be listened on."""
    check_free(host, port, option="another port: --port 0 takes a free one")


def free_port(host: str) -> int:
    """A port that is free now."""
    with listen_tcp(host, 0, option="another --host") as listener:
        return int(listener.getsockname()[1])


def reachable(host: str) -> str:
    """The address for connecting to a server that listens on `host`."""
    if host in ("", "0.0.0.0"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    if ":" in host:
        return "[::1]" if host == "::" else f"[{host}]"
    return host


def answers(url: str, path: str) -> bool:
    """Whether a server returns 200 within two seconds."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def read_page(url: str, path: str) -> str:
    """A server's page, of at most 1 MiB; empty if it has none within two seconds."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().read(_TAIL_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def read_tail(log: Path) -> list[str]:
    """The last lines of a log, from at most 1 MiB."""
    with log.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL_BYTES))
        return stream.read().decode(errors="replace").replace("\r", "\n").splitlines()
