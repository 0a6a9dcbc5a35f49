"""`weightyard rollout`: lists the versions of a workspace, and returns to one of them."""

from __future__ import annotations

from typing import Any, Final

import click

from modelimage.errors import InvalidInput, NotFound
from weightyard.console import Console, pass_console
from weightyard.kubectl import Kubectl, cluster_options, kubectl
from workspace.controller.revisions import POD_PARTS, Revision, history

Json = dict[str, Any]
_GROUP: Final = "/apis/weightyard.dev/v1alpha1"


class Cluster:
    """The workspaces of one namespace and their versions, through kubectl."""

    def __init__(self, cluster: Kubectl, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace

    def workspace(self, name: str) -> Json:
        return self._cluster.get(self._path(name))

    def revisions(self, name: str) -> list[Revision]:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/controllerrevisions"
        found = self._cluster.get(f"{path}?labelSelector=weightyard.dev/workspace%3D{name}")
        return history([{"kind": "ControllerRevision", **each} for each in found["items"]], name)

    def replace(self, document: Json) -> None:
        self._cluster.replace(self._path(document["metadata"]["name"]), document)

    def _path(self, name: str) -> str:
        return f"{_GROUP}/namespaces/{self._namespace}/workspaces/{name}"


_in_namespace = click.option(
    "-n", "--namespace", help="The workspace's namespace.  [default: the kubeconfig context's]"
)


def _reach(namespace: str | None, context: str | None, kubeconfig: str | None) -> Cluster:
    cluster = kubectl(context, kubeconfig)
    return Cluster(cluster, namespace or cluster.namespace())


@click.group()
def rollout() -> None:
    """Show the versions of a workspace in a cluster, and return to one."""


@rollout.command("history")
@click.argument("name")
@_in_namespace
@cluster_options
@pass_console
def show_history(
    console: Console,
    *,
    name: str,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """List the versions of a workspace, oldest first."""
    kept = _reach(namespace, context, kubeconfig).revisions(name)
    console.table(
        ["revision", "variant", "image", "id"],
        [[each.number, each.variant, each.image, each.id] for each in kept],
    )


@rollout.command()
@click.argument("name")
@_in_namespace
@cluster_options
@pass_console
def status(
    console: Console,
    *,
    name: str,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Show the status of a workspace's rollout."""
    found = _reach(namespace, context, kubeconfig).workspace(name).get("status") or {}
    rows = [
        [each["type"], each["status"], each["reason"], each["message"]]
        for each in found.get("conditions", ())
    ]
    console.table(["condition", "status", "reason", "message"], rows)


@rollout.command()
@click.argument("name")
@click.option(
    "--to-revision",
    type=click.IntRange(1),
    help="Revision to go back to; by default the previous one.",
)
@_in_namespace
@cluster_options
@pass_console
def undo(
    console: Console, *, name: str, to_revision: int | None, namespace: str | None, context: str | None,
    kubeconfig: str | None,
) -> None:  # fmt: skip
    """Return to an earlier version: the same spec, and the same bytes, even if a tag has moved since."""
    cluster = _reach(namespace, context, kubeconfig)
    target = pick(cluster.revisions(name), to_revision)
    # With the resourceVersion that was read: a concurrent edit makes it fail and isn't lost.
    cluster.replace(with_version(cluster.workspace(name), target))
    console.result(
        {"revision": target.number, "image": target.image, "variant": target.variant},
        f"{name} goes back to revision {target.number}: {target.variant} of {target.image}",
    )


def pick(kept: list[Revision], number: int | None) -> Revision:
    """The requested version, or the one before the newest. Raises NotFound."""
    if number is not None:
        found = next((each for each in kept if each.number == number), None)
        if found is None:
            numbers = ", ".join(str(each.number) for each in kept) or "none"
            raise NotFound(f"revision {number} isn't kept; these are: {numbers}")
        return found
    # The newest is the one that runs or rolls out now, so going back means the one before it.
    if len(kept) < 2:
        raise InvalidInput(
            "there is no version before this one", hint="See: weightyard rollout history."
        )
    return kept[-2]


def with_version(document: Json, revision: Revision) -> Json:
    """The Workspace with an earlier version's spec; parts of the spec outside of versions stay unchanged."""
    spec = {name: value for name, value in document["spec"].items() if name not in POD_PARTS}
    spec |= {name: revision.requested[name] for name in POD_PARTS if name in revision.requested}
    rollout_part = {k: v for k, v in spec.pop("rollout", {}).items() if k != "restartedAt"}
    rollout_part |= revision.requested.get("rollout", {})
    return {**document, "spec": {**spec, **({"rollout": rollout_part} if rollout_part else {})}}
