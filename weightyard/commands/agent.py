"""`weightyard agent`: run the cache agent of a node until it is told to stop."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.agent import AgentOptions, Ready, run_agent
from cache_agent.fetch.engine import EngineOptions
from cache_agent.node import NodeOptions
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.access import Access
from weightyard.console import Console, pass_console
from weightyard.options import access_options, root_option


@click.command()
@root_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    envvar="WEIGHTYARD_PORT",
    show_envvar=True,
    help="Answer on this loopback port too; 0 takes a free one.",
)
@click.option(
    "--budget",
    default="100%",
    show_default=True,
    envvar="WEIGHTYARD_BUDGET",
    show_envvar=True,
    help="What the cache may use: 500GB, or 80% of its filesystem.",
)
@click.option(
    "--floor",
    default="5%",
    show_default=True,
    envvar="WEIGHTYARD_FLOOR",
    show_envvar=True,
    help="Free space that the cache always leaves on its filesystem.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    envvar="WEIGHTYARD_STREAMS",
    show_envvar=True,
    help="Transfers at once.",
)
@click.option(
    "--bandwidth",
    default="0",
    show_default=True,
    envvar="WEIGHTYARD_BANDWIDTH",
    show_envvar=True,
    help="Cap of all transfers together, in bytes a second (100MB); 0 for none.",
)
@access_options
@pass_console
def agent(
    console: Console,
    *,
    root: Path,
    port: int | None,
    budget: str,
    floor: str,
    streams: int,
    bandwidth: str,
    access: Access,
) -> None:
    """Hold the cache at --root open and answer on its control socket (<root>/agent.sock).

    While it runs, `weightyard pull`, `ls`, `rm` and the others on the same --root go through it.
    """
    limits = SpaceLimits(Amount.parse(budget), Amount.parse(floor))
    engine = EngineOptions(streams=streams, bandwidth=float(Amount.parse(bandwidth).bytes))

    def ready(where: Ready) -> None:
        console.event("ready", socket=where.socket, port=where.port, models=where.models)
        on_port = f" and http://127.0.0.1:{where.port}" if where.port else ""
        console.say(f"agent ready: {where.models} models, on {where.socket}{on_port}")

    run_agent(AgentOptions(NodeOptions(root, limits, engine), port), access, ready)
