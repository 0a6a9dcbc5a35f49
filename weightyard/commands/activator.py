"""`weightyard activator`: holds requests of a workspace that is scaled to zero, until a server is ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import click

from modelimage.errors import InvalidInput
from modelimage.spans import exporting
from weightyard.console import Console, pass_console
from weightyard.options import Number, WholeNumber
from workspace.activator.gate import QueueLimits
from workspace.activator.proxy import Activator, ProxyOptions, serve


@click.command()
@click.option(
    "--listen",
    default="127.0.0.1:8080",
    show_default=True,
    metavar="HOST:PORT",
    help="Address to listen on, HOST:PORT.",
)
@click.option(
    "--upstream", "upstreams", required=True, multiple=True, metavar="URL",
    help="A server to pass requests to. Repeatable.",
)  # fmt: skip
@click.option(
    "--health-path",
    default="/health",
    show_default=True,
    help="Answers 200 once a server is ready.",
)
@click.option(
    "--capacity",
    type=WholeNumber(1),
    default=512,
    show_default=True,
    help="Maximum number of waiting requests.",
)
@click.option(
    "--timeout",
    type=Number(1),
    default=600.0,
    show_default=True,
    help="Maximum seconds that a request waits.",
)
@pass_console
def activator(
    console: Console, *, listen: str, upstreams: tuple[str, ...], health_path: str, capacity: int, timeout: float
) -> None:  # fmt: skip
    """Forward requests to the servers at --upstream, and hold them while none is ready.

    The controller runs one beside each workspace that may scale to zero; requests pass through it only while no server
    runs.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput(
            f"not an address: {listen!r}", hint="Write HOST:PORT, such as 0.0.0.0:8000."
        )
    limits = QueueLimits(capacity=capacity, timeout=timeout)
    options = ProxyOptions(lambda: upstreams, health_path=health_path, limits=limits)
    with exporting(os.environ, service="weightyard-activator"):
        asyncio.run(_serve(console, Activator(options), host=host.strip("[]"), port=int(port)))


async def _serve(console: Console, running: Activator, *, host: str, port: int) -> None:
    task = asyncio.create_task(
        serve(
            running,
            host=host,
            port=port,
            ready=lambda found: console.say(f"listening on {host}:{found}"),
        )
    )
    # A cancellation in the loop, not an exception wherever the interpreter happens to be.
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
