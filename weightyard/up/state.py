"""The state of a local workspace, in its directory under the root: `state.json`, the server's log, a lock.

Only the supervisor writes; writes are atomic. The lock is released when its holder ends and keeps a second `up` of the
same name from running.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelimage.errors import Busy, InvalidInput, NotWritable
from weightyard.up.phases import Event, Phase, after
from weightyard.up.process import ProcessIdentity, is_alive, session_members


@dataclass(frozen=True, slots=True)
class WorkspaceFailure:
    """Why a workspace failed, as the CLI reports it."""

    message: str
    hint: str | None
    code: int


@dataclass(frozen=True, slots=True)
class State:
    """One workspace. Times are seconds since the epoch; `server` is the inference server's first process,
    `startup` the timeline of its start as in a Workspace's status.

    Law: `State.parse(s.to_text()) == s`.
    """

    name: str
    phase: Phase
    supervisor: ProcessIdentity
    image: str
    started_at: float
    host: str
    port: int
    engine: str = ""
    variant: str = ""
    key: str = ""
    served_name: str = ""
    model_dir: str = ""
    server: ProcessIdentity | None = None
    ready_at: float | None = None
    failure: WorkspaceFailure | None = None
    startup: dict[str, Any] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def moved(self, event: Event, **changes: Any) -> State:
        """The state after an event, with other changed fields."""
        return replace(self, phase=after(self.phase, event), **changes)

    def to_text(self) -> str:
        document = {name: getattr(self, name) for name in State.__slots__}
        document["phase"] = self.phase.value
        document["supervisor"] = self.supervisor.to_json()
        document["server"] = self.server.to_json() if self.server else None
        failure = self.failure
        document["failure"] = (
            {"message": failure.message, "hint": failure.hint, "code": failure.code}
            if failure
            else None
        )
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def parse(cls, text: str) -> State:
        """Raises InvalidInput."""
        try:
            document = json.loads(text)
            document["phase"] = Phase(document["phase"])
            document["supervisor"] = ProcessIdentity.from_json(document["supervisor"])
            server, failure = document["server"], document["failure"]
            document["server"] = ProcessIdentity.from_json(server) if server else None
            document["failure"] = WorkspaceFailure(**failure) if failure else None
            return cls(**document)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"not a workspace's state: {error}") from error


class ProcessState:
    """A workspace's condition in `ps` that isn't a phase: whether its processes exist."""

    ORPHANED = "orphaned"  # the supervisor is gone, its server still runs
    DIED = "died"  # both are gone without a recorded reason


def condition(state: State) -> str:
    """The phase, or the condition of missing processes."""
    if state.phase.over or is_alive(state.supervisor):
        return state.phase.value
    # The whole session: workers may outlive the server's first process, and hold its port and GPU memory.
    if state.server is not None and session_members(state.server):
        return ProcessState.ORPHANED
    return ProcessState.DIED


def is_running(state: State) -> bool:
    return condition(state) not in (Phase.STOPPED.value, Phase.FAILED.value, ProcessState.DIED)


class WorkspaceDirectory:
    """The directory of one local workspace."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.root = root
        self.path = root / "up" / name

    @property
    def log(self) -> Path:
        """The inference server's output."""
        return self.path / "server.log"

    @property
    def supervisor_log(self) -> Path:
        """The supervisor's events in the background, as JSON lines."""
        return self.path / "up.log"

    def read(self) -> State | None:
        """The state; None when nothing was ever started here. Raises InvalidInput for an invalid file."""
        path = self.path / "state.json"
        try:
            return State.parse(path.read_text())
        except FileNotFoundError:
            return None
        except (InvalidInput, UnicodeDecodeError) as error:
            raise InvalidInput(
                f"{path} can't be read: {error}",
                hint="If the workspace isn't running, remove the file.",
            ) from error

    def write(self, state: State) -> None:
        """Replaces the state file. Raises NotWritable."""
        temporary = self.path / "state.json.new"
        # Renamed into place: other commands read the file at any time. Not fsynced: after a crash of the machine the
        # processes that it names are gone too.
        try:
            temporary.write_text(state.to_text())
            temporary.replace(self.path / "state.json")
        except OSError as error:
            raise _not_writable(self.path, error) from error

    def keep_document(self, text: str) -> Path:
        """Stores the workspace's document for the supervisor in the background. Raises NotWritable."""
        path = self.path / "workspace.yaml"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise _not_writable(self.path, error) from error
        return path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of this name's supervisor. Raises Busy, NotWritable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The file is never removed: a lock on a file without a name would keep nobody out.
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _not_writable(self.path, error) from error
        try:
            # flock, not a pid file: the kernel releases it however the supervisor ends.
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise runs_already(self.name) from error
            yield
        finally:
            os.close(descriptor)


def runs_already(name: str) -> Busy:
    """The error for starting a workspace twice."""
    return Busy(
        f"workspace {name!r} is already running",
        hint=f"See `weightyard ps`; stop it with `weightyard down {name}`.",
    )


def _not_writable(path: Path, error: OSError) -> NotWritable:
    return NotWritable(
        f"can't write {path}: {error.strerror}", hint="Choose a directory with --root."
    )


def all_workspaces(
    root: Path, unreadable: Callable[[InvalidInput], None] | None = None
) -> list[State]:
    """The states of all workspaces of a root, by name. Unreadable ones are reported and left out."""
    try:
        names = sorted(entry.name for entry in (root / "up").iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []
    states = []
    for name in names:
        # One unreadable file must not hide the others, which may have to be stopped.
        try:
            states.append(WorkspaceDirectory(root, name).read())
        except InvalidInput as error:
            if unreadable is not None:
                unreadable(error)
    return [state for state in states if state is not None]
