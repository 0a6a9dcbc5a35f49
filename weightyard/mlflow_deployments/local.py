"""Deployments on this machine: servers in the background, as `weightyard.serve` starts them.

There is one server of a name and, on most machines, memory for one: an update stops the old version first, and serves
it again if the new one doesn't come up.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from modelimage.errors import EngineFailed, WeightyardError
from weightyard.mlflow_deployments.backend import Endpoint, served_name
from weightyard.mlflow_deployments.deployment_errors import AlreadyExists, NotServing
from weightyard.mlflow_deployments.documents import Found, Json, deployment_of
from weightyard.options import default_root
from weightyard.python_api.servers import Server, serve
from weightyard.up.state import State, WorkspaceDirectory, condition, is_running
from weightyard.up.stop import check_name, stop_workspace

_STOP_SECONDS: Final = 60.0
_log = logging.getLogger(__name__)
# The servers that this process started, by their directory: children are reaped by whoever started them, and clients
# come and go.
_STARTED: Final[MutableMapping[Path, Server]] = {}


class LocalBackend:
    """The servers of this machine's cache. `port` 0 takes a free one."""

    namespace: str | None = None

    def __init__(self, *, root: Path | None = None, port: int = 0) -> None:
        self.root = root or default_root(os.environ)
        self._port = port

    def find(self, name: str) -> Found | None:
        directory = self._directory(name)
        document, state = _document(directory), directory.read()
        if document is None:
            return None
        # A document of a server that ended, which nobody deployed, is no more than a trace of it.
        if deployment_of(document) is None and not (state and is_running(state)):
            return None
        return _found(document, state)

    def all(self) -> list[Found]:
        try:
            names = sorted(each.name for each in (self.root / "up").iterdir() if each.is_dir())
        except FileNotFoundError:
            return []
        return [found for name in names if (found := self.find(name)) is not None]

    def apply(self, document: Json, previous: Json | None, *, timeout: float | None) -> None:
        name = document["metadata"]["name"]
        state = self._directory(name).read()
        runs = state is not None and is_running(state)
        if previous is None:
            if runs:
                raise AlreadyExists(f"a server {name} runs here already", hint="Take another name.")
            self._serve_first(document, timeout)
        elif not runs or document != previous:
            self._replace(document, previous, timeout)

    def remove(self, name: str) -> None:
        directory = self._directory(name)
        self._stop(directory)
        with suppress(FileNotFoundError):
            (directory.path / "workspace.yaml").unlink()

    @contextmanager
    def reach(self, name: str) -> Iterator[Endpoint]:
        directory = self._directory(name)
        state, document = directory.read(), _document(directory)
        if state is None or document is None or not is_running(state):
            raise NotServing(f"{name} doesn't run", hint="An update starts it again.")
        yield Endpoint(state.url, state.served_name or served_name(document))

    def _serve_first(self, document: Json, timeout: float | None) -> None:
        try:
            self._serve(document, timeout)
        except BaseException:
            # A deployment that never served isn't one: the name is free again.
            with suppress(FileNotFoundError):
                (self._directory(document["metadata"]["name"]).path / "workspace.yaml").unlink()
            raise

    def _replace(self, document: Json, previous: Json, timeout: float | None) -> None:
        directory = self._directory(document["metadata"]["name"])
        self._stop(directory)
        try:
            self._serve(document, timeout)
        except WeightyardError as error:
            self._take_back(previous, error)
            raise NotServing(
                f"{directory.name} serves its version before again, since the new one doesn't start: {error.message}",
                hint=error.hint,
            ) from error
        except BaseException:
            # Interrupted: nothing runs, and what an update starts again is what served before.
            directory.keep_document(json.dumps(previous))
            _log.warning(
                "%s is stopped: an update starts the version before again.", directory.name
            )
            raise

    def _take_back(self, previous: Json, error: WeightyardError) -> None:
        try:
            self._serve(previous, None)
        except WeightyardError as again:
            raise NotServing(
                f"the new version doesn't serve: {error.message}; nor does the one before: {again.message}",
                hint=again.hint,
            ) from error

    def _serve(self, document: Json, timeout: float | None) -> None:
        cpu = (document["spec"].get("resources") or {}).get("gpus") == 0
        server = serve(document, cpu=cpu, port=self._port, root=self.root, start_timeout=timeout)
        _STARTED[self._directory(server.name).path] = server

    def _stop(self, directory: WorkspaceDirectory) -> None:
        started = _STARTED.pop(directory.path, None)
        if started is not None:
            started.stop()
        stop_workspace(directory, timeout=_STOP_SECONDS)

    def _directory(self, name: str) -> WorkspaceDirectory:
        return WorkspaceDirectory(self.root, check_name(name))


def _document(directory: WorkspaceDirectory) -> Json | None:
    """The Workspace that was served last in a directory; None where nothing was in the background, or it is damaged."""
    try:
        found = json.loads((directory.path / "workspace.yaml").read_text())
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise EngineFailed(f"can't read {directory.path}: {error.strerror}") from error
    is_one = isinstance(found, dict) and {"metadata", "spec"} <= found.keys()
    return found if is_one else None


def _found(document: Json, state: State | None) -> Found:
    if state is None:
        return Found(document, "stopped")
    facts: dict[str, Any] = {"variant": state.variant}
    why = state.failure.message if state.failure else ""
    url = state.url if is_running(state) else ""
    return Found(document, condition(state), why, url, facts)
