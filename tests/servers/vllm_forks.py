"""Real vLLM servers that share the import of vLLM, so that a test can start many.

A server is the process that `python -m vllm.entrypoints.openai.api_server ARGUMENTS` would be: its own process group,
arguments, environment and port. Only interpreter and imports, some 30 seconds of CPU time, come from a process that is
forked for each (`tests/servers/vllm_fork_program.py`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import urllib3

from tests.servers.process import (
    LOG_TAIL,
    ContextServer,
    ServerFailed,
    child_environment,
    wait_until,
)

# As every plan has them. The libraries that read these do so when they are imported.
ENVIRONMENT: Final = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_MODULE: Final = "vllm.entrypoints.openai.api_server"
_PROGRAM: Final = "tests.servers.vllm_fork_program"
_REPOSITORY: Final = Path(__file__).parents[2]


class ForkedServer:
    """One running server on `url`."""

    def __init__(self, pid: int, url: str, log: Path) -> None:
        self._pid = pid
        self._log = log
        self.url = url
        self._http = urllib3.PoolManager(retries=False)

    def wait_until_healthy(self) -> None:
        """Raises ServerFailed with the end of the log if the server ends first, or stands still."""
        try:
            wait_until(lambda: self._is_healthy() or not self.is_running(), what="healthy answer")
        except TimeoutError as error:
            raise self._failed(str(error)) from error
        if not self._is_healthy():
            raise self._failed("ended before it was healthy")

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON answer to a request. Raises ServerFailed for another status than 200."""
        reply = self._http.request("POST", f"{self.url}{path}", json=dict(body))
        if reply.status != 200:
            raise self._failed(f"answered {reply.status}: {reply.data[:500]!r}")
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    def is_running(self) -> bool:
        return Path(f"/proc/{self._pid}").exists()

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """Ends the server and its children."""
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            wait_until(lambda: not self.is_running(), what="end", idle_seconds=10)
        self._signal(signal.SIGKILL)
        self._http.clear()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            return

    def _is_healthy(self) -> bool:
        try:
            return self._http.request("GET", f"{self.url}/health", timeout=2.0).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"vLLM {what}; its log ends:\n{self.log_text()[-LOG_TAIL:]}")


class VllmForks(ContextServer):
    """The process with the imports. It begins importing at once; the first server waits for it."""

    def _start(self, stack: ExitStack) -> None:
        self._root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vllm-forks-")))
        self._log = stack.enter_context((self._root / "log").open("wb"))
        self._started = 0
        self._program = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", _PROGRAM],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
                env=child_environment(self._root, **ENVIRONMENT), cwd=_REPOSITORY,
            )
        )  # fmt: skip
        stack.callback(self._end)

    def _end(self) -> None:
        assert self._program.stdin is not None
        with suppress(BrokenPipeError):
            self._program.stdin.close()  # it ends with its input
        self._program.wait()

    @contextmanager
    def server(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> Iterator[ForkedServer]:
        """A server with a planned command and environment. It may still be starting."""
        server = self._fork(command, environment)
        try:
            yield server
        finally:
            server.stop()

    def _fork(self, command: Sequence[str], environment: Mapping[str, str]) -> ForkedServer:
        _, flag, module, *arguments = command
        assert (flag, module) == ("-m", _MODULE)
        assert environment.items() >= ENVIRONMENT.items(), "read at the import, which is shared"
        self._started += 1
        log = self._root / f"server-{self._started}.log"
        request = {"module": module, "arguments": arguments, "log": str(log)}
        answer = self._ask({**request, "environment": dict(environment)})
        port = arguments[arguments.index("--port") + 1]
        return ForkedServer(answer["pid"], f"http://127.0.0.1:{port}", log)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        try:
            print(json.dumps(request), file=self._program.stdin, flush=True)
            line = self._program.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            end = (self._root / "log").read_text(errors="replace")[-LOG_TAIL:]
            raise ServerFailed(f"the process that imports vLLM ended; its log ends:\n{end}")
        answer: dict[str, Any] = json.loads(line)
        return answer
