"""Runs the supervisor in the background, and shows its progress in the foreground until it is ready.

The background process is the same command with --json, writing events to a file. The foreground reads the file and
shows the same progress, so there is one implementation of running and of reporting.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

from builder.reporter import Progress
from modelimage.child import python_module
from modelimage.errors import EngineFailed
from weightyard.console import Console, debugging
from weightyard.exits import RelayedError
from weightyard.up.inference_server import POLL
from weightyard.up.phases import Phase
from weightyard.up.state import State, WorkspaceDirectory, is_running, runs_already


@dataclass(frozen=True)
class Background:
    """A supervisor in the background, and its event stream."""

    process: subprocess.Popen[bytes]
    events: IO[str]


@contextmanager
def start(arguments: Sequence[str], directory: WorkspaceDirectory) -> Iterator[Background]:
    """Starts `weightyard --json ARGUMENTS` in its own session; it outlives the context.

    Its events go to a new file in the workspace's directory, since the previous one may still be read. Raises Busy when
    the workspace is running.
    """
    state = directory.read()
    if state is not None and is_running(state):
        raise runs_already(directory.name)
    command = [*python_module("weightyard"), "--json", *arguments]
    directory.supervisor_log.unlink(missing_ok=True)
    with directory.supervisor_log.open("wb") as output:
        # Opened through the descriptor: a second `up` may replace the file under the same name.
        same_file = f"/proc/self/fd/{output.fileno()}"
        with open(same_file, encoding="utf-8", errors="replace") as events:  # noqa: PTH123 - valid in this process only
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output,
                # Closing the terminal sends SIGHUP to its own session alone.
                start_new_session=True, env=os.environ,
            )  # fmt: skip
            yield Background(process, events)


def follow(background: Background, directory: WorkspaceDirectory, console: Console) -> State:
    """Shows the background's progress until it is ready. Raises Relayed with its error when it ends.

    Ctrl-C ends only the display, not the workspace.
    """
    with ExitStack() as open_jobs:
        display = _EventDisplay(console, open_jobs)
        for event in _events(background):
            display.show(event)
            if event.get("event") == "phase" and event.get("phase") == Phase.READY.value:
                state = directory.read()
                if state is not None:
                    return state
        raise display.failure(background.process.wait())


def _events(background: Background) -> Iterator[dict[str, Any]]:
    """The events in the file as they are written, until the process has ended and all are read."""
    rest = ""
    while True:
        # Checked before reading: events written between a read and the exit would be lost
        # otherwise.
        ended = background.process.poll() is not None
        rest += background.events.read()
        *lines, rest = rest.split("\n")
        for line in lines:
            event = _parse(line)
            if event is not None:
                yield event
        if ended:
            return
        time.sleep(POLL)


def _parse(line: str) -> dict[str, Any] | None:
    """Parses an event. Other lines, such as a library's warning, become text for a possible error."""
    try:
        event = json.loads(line)
    except ValueError:
        return {"event": "line", "text": line} if line.strip() else None
    return event if isinstance(event, dict) else None


class _EventDisplay:
    """Turns events back into progress on the foreground's console."""

    def __init__(self, console: Console, open_jobs: ExitStack) -> None:
        self._console = console
        self._open_jobs = open_jobs
        self._job = ""
        self._done = 0
        self._already = 0
        self._progress: Progress | None = None
        self._error: dict[str, Any] = {}
        self._stray: list[str] = []

    def show(self, event: dict[str, Any]) -> None:
        match event.get("event"):
            case "note":
                self._console.say(str(event.get("text")))
            case "error":
                self._error = event
            case "line":
                self._stray.append(str(event["text"]))
                # Such as the background's traceback.
                if debugging():
                    self._console.say(str(event["text"]))
            case "progress":
                self._progressed(event)

    def failure(self, code: int) -> RelayedError:
        message = self._error.get("message") or "; ".join(self._stray[-1:])
        return RelayedError(
            str(message or f"the background process ended with code {code}"),
            hint=self._error.get("hint"),
            code=code,
            kind=str(self._error.get("kind") or EngineFailed.__name__),
        )

    def _progressed(self, event: dict[str, Any]) -> None:
        job = str(event.get("job"))
        if job != self._job or self._progress is None:
            self._open_jobs.close()
            self._job, self._done, self._already = job, 0, 0
            self._progress = self._open_jobs.enter_context(
                self._console.progress(job, event.get("total"))
            )
        self._progress.describe(str(event.get("text") or ""))
        done, already = int(event.get("done") or 0), int(event.get("already") or 0)
        # Before the rest, so that what was there already doesn't count as fetched in a moment.
        if already > self._already:
            self._progress.resume(already - self._already)
            self._done += already - self._already
            self._already = already
        if done > self._done:
            self._progress.advance(done - self._done)
            self._done = done
        # A failed job stays open until the error closes it.
        if event.get("state") == "done":
            self._open_jobs.close()
            self._progress = None
