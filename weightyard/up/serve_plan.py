"""What `up` decides and checks before a byte of a model moves: engine, port, variant, command line.

`--dry-run` shows it. Reads records and this machine; fetches and writes nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cache_agent.store.paths import StorePaths
from modelimage.errors import Busy
from weightyard.console import Console
from weightyard.rendered import without_effect
from weightyard.text import format_bytes
from weightyard.up import inference_server as servers
from weightyard.up.agent_cache import AgentCache, Cached
from weightyard.up.engine_program import EngineProgram, find_program
from weightyard.up.state import WorkspaceDirectory, all_workspaces, is_running, runs_already
from workspace.fit import Fit
from workspace.hardware import Hardware
from workspace.launch_plan import (
    LaunchPlan,
    Site,
    check_environment,
    choose_variant,
    plan_launch,
)
from workspace.schema import AUTO_VARIANT, Workspace
from workspace.servable import Servable


@dataclass(frozen=True, slots=True)
class Target:
    """Where a workspace is to be served. Port None: the workspace's own."""

    root: Path
    host: str
    port: int | None
    python: Path
    hardware: Hardware


@dataclass(frozen=True, slots=True)
class ServePlan:
    """The plan of one start. `missing`: bytes of the model's files that aren't in the cache, at most.

    `available`: bytes that the cache can take, with what eviction can free. `no_effect`: fields of the spec.
    """

    image: str
    size: int
    missing: int
    available: int
    program: EngineProgram
    launch: LaunchPlan
    hardware: Hardware
    url: str
    no_effect: tuple[str, ...] = ()


def check_start(workspace: Workspace, target: Target) -> EngineProgram:
    """Checks what needs no model: the name, the engine and its version, the environment, the port.

    Raises Busy, EngineFailed, InvalidInput.
    """
    state = WorkspaceDirectory(target.root, workspace.name).read()
    if state is not None and is_running(state):
        raise runs_already(workspace.name)
    check_environment(workspace)
    engine = workspace.spec.runtime.engine
    program = find_program(engine, target.python, gpu=target.hardware.gpu is not None)
    port = chosen_port(workspace, target)
    # 0 is chosen at the start: until then no port is known that could be taken.
    if port:
        servers.check_port(target.host, port)
        check_neighbours(target.root, workspace.name, port)
    return program


def chosen_port(workspace: Workspace, target: Target) -> int:
    """The port to serve on; 0 for any free one."""
    return workspace.spec.runtime.port if target.port is None else target.port


def check_neighbours(root: Path, name: str, port: int) -> None:
    """Raises Busy when another workspace of this root has the port: its server may not be listening yet."""
    for other in all_workspaces(root):
        if other.name != name and other.port == port and is_running(other):
            raise Busy(
                f"port {port} is taken by the workspace {other.name!r}",
                hint="Choose another port: --port 0 takes a free one.",
            )


def choose(
    workspace: Workspace, image: str, cache: AgentCache, hardware: Hardware, *, may_pull: bool
) -> tuple[Fit, Servable]:
    """The variant to serve, and its record. Raises the cache's errors, NoSpace and InvalidInput."""
    wanted = workspace.spec.model.variant
    variant = None if wanted == AUTO_VARIANT else wanted
    records = cache.variants(image, variant, may_pull=may_pull)
    fit = choose_variant(workspace, records, hardware)
    return fit, records[fit.variant]


def launch_plan(
    workspace: Workspace,
    fit: Fit,
    model: Cached,
    adapters: Mapping[str, Cached],
    target: Target,
    port: int,
) -> LaunchPlan:
    """The command line for a model. Raises InvalidInput.

    `adapters`: those in the cache, by name. The others stand in the plan with a made-up directory, without their rank.
    """
    models = StorePaths(target.root).models
    dirs = {each.name: models / each.name for each in workspace.spec.runtime.adapters}
    dirs |= {name: each.path for name, each in adapters.items()}
    site = Site(
        PurePosixPath(model.path), target.host, port,
        adapter_dirs={name: PurePosixPath(path) for name, path in dirs.items()},
    )  # fmt: skip
    return plan_launch(
        workspace, record=model.record, fit=fit, hardware=target.hardware, site=site,
        lora_ranks=[each.record.facts.lora_rank for each in adapters.values()],
    )  # fmt: skip


def plan_before_pull(
    workspace: Workspace, fit: Fit, record: Servable, target: Target, port: int
) -> LaunchPlan:
    """The plan of a model that isn't in the cache yet, in the directory that it will have. Raises InvalidInput."""
    model = Cached(StorePaths(target.root).model(record.key), record)
    return launch_plan(workspace, fit, model, {}, target, port)


def plan_serving(
    workspace: Workspace, image: str, cache: AgentCache, target: Target, program: EngineProgram
) -> ServePlan:
    """The whole plan, for `--dry-run`. Raises the errors of a start."""
    fit, record = choose(workspace, image, cache, target.hardware, may_pull=False)
    port = chosen_port(workspace, target)
    launch = plan_before_pull(workspace, fit, record, target, port)
    size = sum(file.size for file in record.files)
    held = cache.holds(record)
    return ServePlan(
        image, size, 0 if held else size, cache.available(), program, launch, target.hardware,
        f"http://{servers.reachable(target.host)}:{port or '(a free port)'}",
        tuple(without_effect(workspace, "up")),
    )  # fmt: skip


def show_plan(console: Console, plan: ServePlan) -> None:
    """Writes the plan as the command's result."""
    console.result(_document(plan), _text(plan))


def _document(plan: ServePlan) -> dict[str, Any]:
    launch = plan.launch
    return {
        "name": launch.name, "image": plan.image, "variant": launch.variant, "key": str(launch.key),
        "size": plan.size, "toFetch": plan.missing, "spaceAvailable": plan.available,
        "engine": {"name": launch.engine.value, "distribution": plan.program.distribution,
                   "version": plan.program.version},
        "gpus": launch.gpus, "gpu": plan.hardware.gpu.name if plan.hardware.gpu else None,
        "contextLength": launch.context, "url": plan.url,
        "command": [*plan.program.command, *launch.args],
        "environment": {each.name: each.value for each in launch.env},
        "notChosen": list(launch.reasons), "noEffect": list(plan.no_effect),
    }  # fmt: skip


def _text(plan: ServePlan) -> str:
    launch, gpu = plan.launch, plan.hardware.gpu
    fetched = f"{format_bytes(plan.missing)} to fetch" if plan.missing else "in the cache"
    engine = " ".join(filter(None, [plan.program.distribution, plan.program.version]))
    rows = [
        ("workspace", launch.name),
        ("image", plan.image),
        ("variant", f"{launch.variant}, {format_bytes(plan.size)}, {fetched}"),
        # Only where something is fetched: a full disk is no obstacle to a model that is there.
        *((("disk", _disk(plan)),) if plan.missing else ()),
        *(("not chosen", reason) for reason in launch.reasons),
        ("engine", f"{engine or launch.engine.value}, {plan.program.command[0]}"),
        ("hardware", f"{launch.gpus} x {gpu.name}" if gpu and launch.gpus else "CPU"),
        ("context", f"{launch.context} tokens" if launch.context else "the engine's default"),
        *((("no effect here", ", ".join(plan.no_effect)),) if plan.no_effect else ()),
        ("url", plan.url),
        ("command", shlex.join([*plan.program.command, *launch.args])),
        *(("environment", f"{each.name}={each.value}") for each in launch.env),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _disk(plan: ServePlan) -> str:
    room = f"{format_bytes(plan.available)} available, with what eviction frees"
    # Files that another model has too are not fetched, so that it may fit all the same.
    short = plan.missing > plan.available
    return (
        f"{room}: too little, unless other models share its files; see `weightyard df`"
        if short
        else room
    )
