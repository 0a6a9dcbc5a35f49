"""Plans and serves models on this machine, for Python programs."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from modelimage.errors import InvalidInput
from weightyard.console import Console
from weightyard.given_workspace import GivenWorkspace, from_text, read_workspace
from weightyard.options import absolute_image, default_root, environment_access
from weightyard.python_api.progress_console import progress_console
from weightyard.up import detach as background
from weightyard.up.agent_cache import AgentCache
from weightyard.up.serve_plan import Target, check_start, plan_serving
from weightyard.up.start_inputs import built_workspace, chosen_hardware, unbuilt
from weightyard.up.state import WorkspaceDirectory, is_running
from weightyard.up.stop import stop_workspace
from workspace.sources import image_of

_STOP_SECONDS: Final = 60.0
_HIGHEST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """What `serve` would do here. Sizes in bytes.

    `to_build`: what must be built into an image first; all but `name` is known after that only. `command` and
    `environment` start the server; `context` is its context length in tokens, None for the engine's own. `not_chosen`:
    why more accurate variants aren't served; `no_effect`: fields of the Workspace that do nothing here.
    """

    name: str
    to_build: str | None = None
    image: str = ""
    variant: str = ""
    size: int = 0
    to_fetch: int = 0
    gpus: int = 0
    context: int | None = None
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    not_chosen: tuple[str, ...] = ()
    no_effect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    """A running inference server, ready for requests at `url`; `model` is its name in them. Ends with the context."""

    name: str
    url: str
    model: str
    variant: str
    log: Path
    _directory: WorkspaceDirectory = field(repr=False)
    _supervisor: subprocess.Popen[bytes] = field(repr=False)

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        state = self._directory.read()
        return state is not None and is_running(state)

    def stop(self, timeout: float = _STOP_SECONDS) -> None:
        """Stop it, and kill what is left after `timeout` seconds. Stopping it twice is fine."""
        _stop(self._directory, self._supervisor, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def plan(
    model: str | Path | Mapping[str, Any],
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    cpu: bool = False,
    python: Path | None = None,
    root: Path | None = None,
    plain_http: Sequence[str] = (),
    ca_file: Path | None = None,
) -> ServingPlan:
    """What `serve` would do with the same arguments; starts, fetches and writes nothing."""
    start = _Start.of(model, name, host, port, cpu=cpu, python=python, root=root, progress=False)
    access = environment_access(plain_http, ca_file)
    workspace = start.given.workspace
    program = check_start(workspace, start.target)
    to_build = unbuilt(start.given)
    if to_build is not None:
        return ServingPlan(workspace.name, to_build)
    cache = AgentCache(start.target.root, access, start.console)
    found = plan_serving(
        workspace, absolute_image(image_of(workspace)), cache, start.target, program
    )
    launch = found.launch
    return ServingPlan(
        launch.name, None, found.image, launch.variant, found.size, found.missing, launch.gpus,
        launch.context, (*program.command, *launch.args),
        {each.name: each.value or "" for each in launch.env}, tuple(launch.reasons), found.no_effect,
    )  # fmt: skip


def serve(
    model: str | Path | Mapping[str, Any],
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    cpu: bool = False,
    python: Path | None = None,
    root: Path | None = None,
    start_timeout: float | None = None,
    plain_http: Sequence[str] = (),
    ca_file: Path | None = None,
    progress: bool | None = None,
) -> Server:
    """Serve a model here, and return once it is ready: `with serve(…) as server:` stops it at the end.

    `model`: an image, hf://ORG/NAME, a checkpoint's directory, or a Workspace as a file or a document. `port` 0 takes a
    free one. The server runs in the background, listed by `weightyard ps`; it outlives this program unless it is
    stopped. Interrupted, it is stopped.
    """
    start = _Start.of(model, name, host, port, cpu=cpu, python=python, root=root, progress=progress)
    access = environment_access(plain_http, ca_file)
    # Before anything is fetched or built.
    check_start(start.given.workspace, start.target)
    target = start.target
    workspace = built_workspace(start.given, root=target.root, access=access, console=start.console)
    directory = WorkspaceDirectory(target.root, workspace.name)
    kept = directory.keep_document(json.dumps(workspace.to_document()))
    options = {
        "--root": target.root, "--host": host, "--port": port, "--python": target.python,
        "--start-timeout": start_timeout, "--ca-file": ca_file,
    }  # fmt: skip
    words = [str(w) for n, v in options.items() if v is not None for w in (n, v)]
    words += [word for each in plain_http for word in ("--plain-http", each)]
    with background.start(["up", str(kept), *words, *(["--cpu"] if cpu else [])], directory) as run:
        try:
            state = background.follow(run, directory, start.console)
        except BaseException:
            _stop(directory, run.process, _STOP_SECONDS)
            raise
    return Server(
        state.name, state.url, state.served_name, state.variant, directory.log, directory, run.process
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Start:
    """What `plan` and `serve` are asked for, read and checked."""

    given: GivenWorkspace
    target: Target
    console: Console

    @classmethod
    def of(
        cls,
        model: str | Path | Mapping[str, Any],
        name: str | None,
        host: str,
        port: int,
        *,
        cpu: bool,
        python: Path | None,
        root: Path | None,
        progress: bool | None,
    ) -> Self:
        if type(port) is not int or not 0 <= port <= _HIGHEST_PORT:
            raise InvalidInput(f"not a port: {port!r}", hint="Give 0 to 65535; 0 takes a free one.")
        console = progress_console(progress)
        given = _given(model, name)
        hardware = chosen_hardware(console, given.workspace, cpu=cpu)
        where = Path(root).absolute() if root else default_root(os.environ)
        target = Target(where, host, port, Path(python or sys.executable), hardware)
        return cls(given, target, console)


def _given(model: str | Path | Mapping[str, Any], name: str | None) -> GivenWorkspace:
    if not isinstance(model, Mapping):
        return read_workspace(str(model), name=name)
    if name is not None:
        raise InvalidInput("a Workspace's document has a name", hint="Leave `name` out.")
    try:
        text = json.dumps(dict(model), default=_written)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"not a Workspace's document: {error}") from error
    return GivenWorkspace(from_text(text, "the document", Path(), None))


def _written(value: object) -> str:
    """A value of YAML that JSON lacks, as the document had it."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TypeError(f"{value!r} has no place in a document")


def _stop(
    directory: WorkspaceDirectory, supervisor: subprocess.Popen[bytes], timeout: float
) -> None:
    stop_workspace(directory, timeout=timeout)
    # A child of this process, which may live on: nobody else would reap it.
    supervisor.wait()
