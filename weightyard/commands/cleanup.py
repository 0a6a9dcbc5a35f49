"""`weightyard cleanup`: removes labels and taints from nodes before uninstalling, and afterwards what helm leaves."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Final

import click

from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.kubeconfig import default_connection
from modelimage.errors import InvalidInput
from weightyard.console import Console, pass_console
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.leftovers import remove_leftovers, require_stopped
from workspace.controller.uninstall import Installation, Removed, leave

_ON_NODES: Final = (
    "on the nodes stay: the cache (agent.hostPath), and group 65532 on kubelet's directories plugins_registry and "
    "pods, which `chgrp root` takes back"
)


@click.command()
@click.option(
    "-n", "--namespace", default="weightyard", show_default=True, help="Weightyard's namespace."
)
@click.option(
    "--controller", metavar="DEPLOYMENT", help="The controller's Deployment, stopped first: it would add labels again."
)  # fmt: skip
@click.option("--force", is_flag=True, help="Continue although pods use cached models.")
@click.option(
    "--all", "everything", is_flag=True,
    help="After `helm uninstall`: delete Leases, NodeCaches and the peers' Secrets too.",
)  # fmt: skip
@click.option(
    "--crds", "definitions", is_flag=True,
    help="With --all: delete the CRDs too, and with them every Workspace and CachedModel.",
)  # fmt: skip
@pass_console
def cleanup(
    console: Console, *, namespace: str, controller: str | None, force: bool, everything: bool, definitions: bool,
) -> None:  # fmt: skip
    """Check that no pod uses a cached model, stop the controller, and remove labels and taints from all nodes.

    The chart runs this before `helm uninstall` deletes anything. Connects as the pod's service account, or by
    KUBECONFIG. Running it twice does no harm.
    """
    if definitions and not everything:
        raise InvalidInput("--crds needs --all", hint="Add --all.")
    release = Installation(namespace, controller, force)
    left, deleted = asyncio.run(_clean(release, everything=everything, definitions=definitions))
    lines = [
        f"labels and taints removed: {', '.join(left.nodes)}"
        if left.nodes
        else "no node had labels or taints to remove"
    ]
    lines += [f"still uses a cached model: {pod}" for pod in left.pods]
    if everything:
        lines.append(f"deleted: {', '.join(deleted) or 'nothing was left'}")
        console.say(_ON_NODES)
    console.result({**asdict(left), "deleted": list(deleted)}, "\n".join(lines))


async def _clean(
    release: Installation, *, everything: bool, definitions: bool
) -> tuple[Removed, tuple[str, ...]]:
    async with KubeClient(default_connection(), role="cleanup Job") as client:
        api = KubernetesApi(client)
        if not everything:
            return await leave(api, release), ()
        # Before any change: programs that run would create again what is deleted.
        await require_stopped(api, release.namespace)
        left = await leave(api, release)
        return left, await remove_leftovers(api, release.namespace, definitions=definitions)
