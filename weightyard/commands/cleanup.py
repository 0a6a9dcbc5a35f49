"""`weightyard cleanup`: removes Weightyard's labels and taints from nodes before it is uninstalled."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import aiohttp
import click

from weightyard.console import Console, pass_console
from workspace.controller.handlers import connect
from workspace.controller.kube_api import KubernetesApi
from workspace.controller.uninstall import Installation, Removed, leave


@click.command()
@click.option(
    "-n", "--namespace", default="weightyard", show_default=True, help="Where Weightyard is."
)
@click.option(
    "--controller", metavar="DEPLOYMENT", help="Stop this controller first, so that it marks nothing again."
)  # fmt: skip
@click.option("--force", is_flag=True, help="Go on although pods use cached models.")
@pass_console
def cleanup(console: Console, *, namespace: str, controller: str | None, force: bool) -> None:
    """Check that no pod uses a cached model, stop the controller, and remove labels and taints from all nodes.

    The chart runs this before `helm uninstall` deletes anything. Connects as the pod's service account, or by
    KUBECONFIG. Running it twice does no harm.
    """
    left = asyncio.run(_leave(Installation(namespace, controller, force)))
    lines = [f"unmarked: {', '.join(left.nodes)}" if left.nodes else "no node was marked"]
    lines += [f"still uses a cached model: {pod}" for pod in left.pods]
    console.result(asdict(left), "\n".join(lines))


async def _leave(release: Installation) -> Removed:
    async with aiohttp.ClientSession() as session:
        return await leave(KubernetesApi(session, connect), release)
