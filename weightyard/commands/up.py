"""`weightyard up`: caches the model of a workspace and serves it on this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import click

from modelimage.access import Access
from weightyard.console import Console, pass_console
from weightyard.exits import INTERRUPTED
from weightyard.given_workspace import GivenWorkspace, read_workspace
from weightyard.options import (
    Number,
    PathName,
    WholeNumber,
    absolute_image,
    access_options,
    default_root,
    root_option,
    workspace_argument,
)
from weightyard.up import detach as background
from weightyard.up.agent_cache import AgentCache
from weightyard.up.engine_program import EngineProgram
from weightyard.up.serve_plan import Target, check_start, plan_serving, show_plan
from weightyard.up.start_inputs import built_workspace, chosen_hardware, unbuilt
from weightyard.up.state import State, WorkspaceDirectory
from weightyard.up.supervisor import STALL_SECONDS, RunOptions, Supervisor
from workspace.schema import Workspace
from workspace.sources import image_of


@click.command()
@workspace_argument
@click.option("--name", help="Workspace to serve, if the file has several; a model's name here.")
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Return once it is ready; the server keeps running in the background.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address the server listens on."
)
@click.option(
    "--port", type=WholeNumber(0, 65535), help="Port instead of the file's; 0 takes a free one."
)
@click.option("--cpu", is_flag=True, help="Serve on the CPU, even where there is a GPU.")
@click.option(
    "--python",
    type=PathName(exists=True, dir_okay=False),
    default=lambda: Path(sys.executable),
    show_default="the one that runs weightyard",
    help="Python interpreter that has the inference server installed.",
)
@click.option(
    "--grace", type=Number(min=0), default=30.0, show_default=True,
    help="Seconds that the server may take to stop before it is killed.",
)  # fmt: skip
@click.option(
    "--start-timeout", type=Number(min=0, min_open=True), metavar="SECONDS",
    help="Fail a start after this many seconds without log output, CPU time or reads."
    f"  [default: spec.runtime.startupSeconds, else {STALL_SECONDS:g}]",
)  # fmt: skip
@click.option(
    "--dry-run", is_flag=True,
    help="Check all that can be checked, and show the plan; fetch, build and start nothing.",
)  # fmt: skip
@root_option
@access_options
@click.pass_context
@pass_console
def up(
    console: Console,
    /,
    ctx: click.Context,
    *,
    given: str,
    name: str | None,
    detach: bool,
    host: str,
    port: int | None,
    cpu: bool,
    python: Path,
    grace: float,
    start_timeout: float | None,
    dry_run: bool,
    root: Path,
    access: Access,
) -> None:
    """Cache the model of WORKSPACE and serve it here with vLLM.

    WORKSPACE is a file (`weightyard init` writes one; - is stdin), or a model: hf://ORG/NAME, an image in a registry,
    oci:DIR:TAG, or the directory of a checkpoint or an OCI layout. What isn't an image is built into a local one first,
    once.

    Runs until Ctrl-C or `weightyard down`, or in the background with --detach.
    """
    source = read_workspace(given, name=name)
    hardware = chosen_hardware(console, source.workspace, cpu=cpu)
    target = Target(root, host, port, python, hardware)
    # Before anything is fetched or built.
    program = check_start(source.workspace, target)
    cache = AgentCache(root, access, console)
    if dry_run:
        _show_plan(console, source, cache, target, program)
        return
    # Built in the foreground even with --detach, which shows progress and errors directly.
    workspace = built_workspace(source, root=root, access=access, console=console)
    directory = WorkspaceDirectory(root, workspace.name)
    if detach:
        _detach(console, workspace, directory)
        return
    supervisor = Supervisor(
        workspace,
        options=RunOptions(
            root=root, host=host, port=port, python=python, grace=grace,
            hardware=hardware, start_timeout=start_timeout,
        ),
        cache=cache,
        console=console,
        environ=os.environ,
    )  # fmt: skip
    asked = supervisor.run(lambda state: _announce(console, state, directory))
    ctx.exit(INTERRUPTED if asked is signal.SIGINT else 128 + asked)


def _show_plan(
    console: Console,
    source: GivenWorkspace,
    cache: AgentCache,
    target: Target,
    program: EngineProgram,
) -> None:
    to_build = unbuilt(source)
    if to_build is not None:
        console.result(
            {
                "name": source.workspace.name,
                "build": to_build,
                "engine": {"version": program.version},
            },
            f"{to_build} would be built into an image of this machine first, then served with "
            f"{program.distribution or 'the engine'} {program.version or ''}".rstrip()
            + ". Its variant and command line are known once it is built.",
        )
        return
    image = absolute_image(image_of(source.workspace))
    show_plan(console, plan_serving(source.workspace, image, cache, target, program))


def _detach(console: Console, workspace: Workspace, directory: WorkspaceDirectory) -> None:
    """Runs the same command in the background with a copy of the workspace, and follows it until it is ready."""
    arguments = ["up", str(directory.keep_document(json.dumps(workspace.to_document())))]
    for parameter, value in click.get_current_context().params.items():
        arguments += _words(parameter, value)
    with background.start(arguments, directory) as started:
        try:
            state = background.follow(started, directory, console)
        except KeyboardInterrupt:
            console.say(
                f"{workspace.name} keeps running in the background; "
                f"stop it with `weightyard down {workspace.name}{_other_root(directory)}`"
            )
            raise
    _announce(console, state, directory, background=True)


def _words(parameter: str, value: object) -> list[str]:
    """The command-line words of an option's value, for the background process."""
    # The background process gets the workspace as a file, since stdin or a moved directory may be gone by then.
    if parameter in ("argument", "file", "name", "detach") or value is None or value is False:
        return []
    option = f"--{parameter.replace('_', '-')}"
    if value is True:
        return [option]
    values = value if isinstance(value, tuple) else (value,)
    return [word for each in values for word in (option, str(each))]


def _announce(
    console: Console, state: State, directory: WorkspaceDirectory, *, background: bool = False
) -> None:
    body = json.dumps(
        {"model": state.served_name, "prompt": "The capital of France is", "max_tokens": 16}
    )
    root = _other_root(directory)
    stop = f"weightyard down {state.name}{root}" if background else "Ctrl-C"
    text = (
        f"{state.name} ({state.variant}) is ready at {state.url}\n\n"
        f"  curl {state.url}/v1/completions -H 'Content-Type: application/json' \\\n"
        f"    -d '{body}'\n\n"
        f"Stop it with {stop}; its log: weightyard logs -f {state.name}{root}"
    )
    console.result(
        {"name": state.name, "url": state.url, "model": state.served_name, "variant": state.variant,
         "key": state.key, "directory": state.model_dir},
        text,
    )  # fmt: skip


def _other_root(directory: WorkspaceDirectory) -> str:
    """The option that later commands need to find this workspace, for a root that isn't the default one."""
    root = directory.root
    return "" if root == default_root(os.environ) else f" --root {shlex.quote(str(root))}"
