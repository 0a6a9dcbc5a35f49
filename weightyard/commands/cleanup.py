"""`weightyard cleanup`: removes Weightyard's labels and taints from nodes before it is uninstalled."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import click

from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.kubeconfig import default_connection
from weightyard.console import Console, pass_console
from workspace.controller.kube_api import KubernetesApi
from workspace.controller.uninstall import Installation, Removed, leave


@click.command()
@click.option(
    "-n", "--namespace", default="weightyard", show_default=True, help="Weightyard's namespace."
)
@click.option(
    "--controller", metavar="DEPLOYMENT", help="The controller's Deployment, stopped first: it would add labels again."
)  # fmt: skip
@click.option("--force", is_flag=True, help="Continue although pods use cached models.")
@pass_console
def cleanup(console: Console, *, namespace: str, controller: str | None, force: bool) -> None:
    """Check that no pod uses a cached model, stop the controller, and remove labels and taints from all nodes.

    The chart runs this before `helm uninstall` deletes anything. Connects as the pod's service account, or by
    KUBECONFIG. Running it twice does no harm.
    """
    left = asyncio.run(_leave(Installation(namespace, controller, force)))
    lines = [
        f"labels and taints removed: {', '.join(left.nodes)}"
        if left.nodes
        else "no node had labels or taints to remove"
    ]
    lines += [f"still uses a cached model: {pod}" for pod in left.pods]
    console.result(asdict(left), "\n".join(lines))


async def _leave(release: Installation) -> Removed:
    async with KubeClient(default_connection(), role="cleanup Job") as client:
        return await leave(KubernetesApi(client), release)
