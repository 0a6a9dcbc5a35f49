"""`weightyard agent`: run the cache agent of a node until it is told to stop."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from cache_agent.access.registries import AllowedRegistries
from cache_agent.agent import AgentOptions, Ready, run_agent
from cache_agent.config import AgentConfig, json_schema, parse_config
from cache_agent.faces.mirror.containerd import configure
from modelimage.access import Access
from modelimage.errors import NotFound
from weightyard.console import Console, pass_console
from weightyard.options import access_options, root_option


@click.command()
@root_option
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="WEIGHTYARD_CONFIG",
    show_envvar=True,
    help="Settings in YAML; read again at SIGHUP. Each is a WEIGHTYARD_ variable too (WEIGHTYARD_FETCH__STREAMS).",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Answer on this loopback port too; 0 takes a free one.",
)
@click.option(
    "--budget", help="What the cache may use: 500GB, or 80% of its filesystem.  [default: 100%]"
)
@click.option("--floor", help="Free space that the cache leaves on its filesystem.  [default: 5%]")
@click.option("--streams", type=click.IntRange(1, 64), help="Transfers at once.  [default: 4]")
@click.option(
    "--bandwidth", help="Cap of all transfers, in bytes a second: 100MB.  [default: no cap]"
)
@click.option(
    "--mirror", metavar="[HOST:]PORT", help="Serve a registry mirror for container runtimes."
)
@click.option(
    "--hub",
    metavar="[HOST:]PORT",
    help="Serve the Hugging Face Hub's API from the cache (HF_ENDPOINT).",
)
@click.option(
    "--observe",
    metavar="[HOST:]PORT",
    help="Answer /livez, /readyz and /metrics, and nothing else.",
)
@click.option(
    "--registry",
    "registries",
    metavar="HOST",
    multiple=True,
    help="A registry that pods may name; may be repeated.  [default: the well-known public ones]",
)
@click.option(
    "--configure-containerd",
    "containerd_dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Put the mirror into containerd's DIR/<registry>/hosts.toml (see configure-containerd).",
)
@click.option(
    "--print-schema", is_flag=True, help="Print the JSON schema of the settings and exit."
)
@access_options
@pass_console
def agent(
    console: Console,
    *,
    root: Path,
    config_file: Path | None,
    print_schema: bool,
    access: Access,
    streams: int | None,
    bandwidth: str | None,
    port: int | None,
    budget: str | None,
    floor: str | None,
    mirror: str | None,
    hub: str | None,
    observe: str | None,
    registries: tuple[str, ...],
    containerd_dir: Path | None,
) -> None:
    """Hold the cache at --root open and answer on its control socket (<root>/agent.sock).

    While it runs, `weightyard pull`, `ls`, `rm` and the others on the same --root go through it.
    """
    if print_schema:
        console.result(json_schema(), json.dumps(json_schema(), indent=2))
        return
    flags = {
        "port": port,
        "budget": budget,
        "floor": floor,
        "fetch.streams": streams,
        "fetch.bandwidth": bandwidth,
        "faces.mirror": mirror,
        "faces.hub": hub,
        "faces.observe": observe,
        "faces.registries": registries or None,
    }

    def load() -> AgentConfig:
        return parse_config(_read(config_file), os.environ, flags)

    def ready(where: Ready) -> None:
        faces = where.faces.named()
        console.event(
            "ready", socket=where.socket, port=where.port, models=where.models, faces=faces
        )
        on_port = f" and http://127.0.0.1:{where.port}" if where.port else ""
        console.say(f"agent ready: {where.models} models, on {where.socket}{on_port}")
        for name, at in faces.items():
            console.say(f"  {name}: {at}")
        if where.faces.mirror is not None and containerd_dir is not None:
            url = f"http://{where.faces.mirror}"
            configure(containerd_dir, AllowedRegistries.of(registries).hosts(), url)

    run_agent(AgentOptions(root, load), access, ready)


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"can't read the settings {path}: {error}", hint="Check --config."
        ) from error
