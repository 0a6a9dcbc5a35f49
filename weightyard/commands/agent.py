"""`weightyard agent`: runs the cache agent of a node until it is stopped."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache_agent.config import AgentConfig, json_schema
from cache_agent.config.settings_file import parse_config
from modelimage.document_files import read_document
from modelimage.errors import InvalidInput, NotFound, why
from weightyard.advanced import AdvancedOption
from weightyard.console import Console, pass_console
from weightyard.options import ROOT_VARIABLE, PathName, access_options, default_root
from weightyard.settings import setting_options
from weightyard.text import plural

# The help needs the settings alone: the agent itself is imported where it is started.
if TYPE_CHECKING:
    from cache_agent.daemon.agent import AgentAddresses
    from modelimage.access import Access


@click.command()
@click.option(
    "--root",
    type=PathName(file_okay=False, resolve_path=True),
    envvar=ROOT_VARIABLE,
    show_envvar=True,
    show_default="~/.cache/weightyard/store",
    help="Directory of the model cache.",
)
@click.option(
    "--config",
    "config_file",
    type=PathName(dir_okay=False),
    envvar="WEIGHTYARD_CONFIG",
    show_envvar=True,
    help="Settings file in YAML; read again at SIGHUP.",
)
@click.option(
    "--configure-containerd",
    "containerd_dir",
    cls=AdvancedOption,
    metavar="DIR",
    type=PathName(file_okay=False),
    help="Configure containerd in DIR to use the mirror (see configure-containerd).",
)
@click.option(
    "--print-schema", is_flag=True, help="Print the JSON schema of the settings and exit."
)
@setting_options
@access_options
@pass_console
def agent(
    console: Console,
    *,
    root: Path | None,
    config_file: Path | None,
    print_schema: bool,
    access: Access,
    containerd_dir: Path | None,
    given: Mapping[str, Any],
) -> None:
    """Run the agent of the cache at --root. Other commands with this --root use it while it runs.

    Every setting is an option, a variable and an entry of the --config file: --fetch-streams,
    WEIGHTYARD_FETCH__STREAMS, fetch.streams. Options override variables, variables override the file.
    """
    if print_schema:
        console.result(json_schema(), json.dumps(json_schema(), indent=2))
        return

    # Called again at SIGHUP, with options and variables still overriding the file.
    def load() -> AgentConfig:
        name = str(config_file) if config_file else "the settings"
        return parse_config(_read(config_file), os.environ, {**given, "root": root}, name=name)

    config = load()
    if containerd_dir is not None and config.servers.mirror is None:
        raise InvalidInput(
            "--configure-containerd needs the mirror, which is off",
            hint="Add --mirror PORT.",
        )

    def ready(where: AgentAddresses) -> None:
        servers = where.servers.named()
        console.event(
            "ready", socket=where.socket, port=where.port, models=where.models, servers=servers
        )
        on_port = f" and http://127.0.0.1:{where.port}/page/" if where.port else ""
        console.say(f"agent ready: {plural(where.models, 'model')}, on {where.socket}{on_port}")
        for name, at in servers.items():
            console.say(f"  {name}: {at}")
        if where.servers.mirror is not None and containerd_dir is not None:
            _configure(console, containerd_dir, config, f"http://{where.servers.mirror}")

    # Collecting garbage takes a tenth of the time of a start, which makes none. Ends in `run_agent`.
    gc.disable()
    from cache_agent.daemon.agent import AgentOptions, run_agent  # noqa: PLC0415
    from weightyard.up.server_rows import server_rows  # noqa: PLC0415

    home = (config.root or default_root(os.environ)).absolute()
    run_agent(AgentOptions(home, load, lambda: server_rows(home)), access, ready)


def _configure(console: Console, directory: Path, config: AgentConfig, url: str) -> None:
    """Points containerd at the mirror for every registry that is named in full, and reports the files."""
    from cache_agent.servers.mirror.containerd import configure  # noqa: PLC0415
    from modelimage.allowed_registries import AllowedRegistries  # noqa: PLC0415

    allowed = AllowedRegistries.from_config(config.servers.registries)
    for path in configure(directory, allowed.hosts(), url):
        console.say(f"  containerd: {path}")
    for pattern in set(allowed.patterns) - set(allowed.hosts()):
        console.say(
            f"  containerd: no file for {pattern}, which is a pattern: name each registry with --registry"
        )


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return read_document(path)
    except OSError as error:
        raise NotFound(
            f"can't read the settings {path}: {why(error)}", hint="Check --config."
        ) from error
