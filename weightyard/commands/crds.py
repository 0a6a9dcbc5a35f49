"""`weightyard crds`: prints this version's CustomResourceDefinitions, or updates a cluster's to them."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import click
import yaml

from weightyard.console import Console, pass_console
from weightyard.crds import definitions

Json = dict[str, Any]

# helm's own field manager. With another one, `helm install` conflicts with definitions that an uninstall has left.
_MANAGER: Final = "helm"


@click.command()
@click.option(
    "--apply", "apply_them", is_flag=True,
    help="Apply them with this pod's service account or KUBECONFIG, instead of printing them.",
)  # fmt: skip
@pass_console
def crds(console: Console, *, apply_them: bool) -> None:
    """Print the definitions of Workspace, CachedModel and NodeCache as YAML, for kubectl apply --server-side.

    helm never changes the definitions of an installed chart, so the chart runs this with --apply before each upgrade.
    Existing objects and fields stay; applying twice changes nothing.
    """
    if not apply_them:
        text = yaml.safe_dump_all(definitions().values(), sort_keys=False)
        console.result(list(definitions().values()), text.rstrip())
        return
    applied = asyncio.run(_apply())
    lines = [
        f"{each['metadata']['name']}: generation {each['metadata']['generation']}"
        for each in applied
    ]
    console.result([each["metadata"] for each in applied], "\n".join(lines))


async def _apply() -> list[Json]:
    # Imported here: printing needs no client.
    from cache_agent.api.kube.kube_client import KubeClient  # noqa: PLC0415
    from cache_agent.api.kube.kubeconfig import default_connection  # noqa: PLC0415
    from workspace.controller.cluster.kube_api import KubernetesApi  # noqa: PLC0415

    async with KubeClient(default_connection(), role="upgrade Job") as client:
        api = KubernetesApi(client)
        return [await api.apply(each, manager=_MANAGER) for each in definitions().values()]
