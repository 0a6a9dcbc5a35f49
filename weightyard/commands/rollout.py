"""`weightyard rollout`: which versions of a workspace there were, and back to one of them.

Talks to the cluster through kubectl, so contexts, plugins and permissions are those that its user has already.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any, Final

import click

from modelimage.errors import EngineFailed, InvalidInput, NotFound
from weightyard.console import Console, pass_console
from workspace.controller.revisions import ASKED, Revision, history

Json = dict[str, Any]
_GROUP: Final = "/apis/weightyard.dev/v1alpha1"
_SECONDS: Final = 60.0


class Kubectl:
    """The few calls made, all raw: no discovery, and the server's own words in errors."""

    def __init__(self, namespace: str, *options: str) -> None:
        self._namespace = namespace
        self._options = options

    def workspace(self, name: str) -> Json:
        return self._run("get", f"{_GROUP}/namespaces/{self._namespace}/workspaces/{name}")

    def revisions(self, name: str) -> list[Revision]:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/controllerrevisions"
        found = self._run("get", f"{path}?labelSelector=weightyard.dev/workspace%3D{name}")
        return history([{"kind": "ControllerRevision", **each} for each in found["items"]], name)

    def replace(self, document: Json) -> None:
        name = document["metadata"]["name"]
        path = f"{_GROUP}/namespaces/{self._namespace}/workspaces/{name}"
        self._run("replace", path, "-f", "-", given=json.dumps(document))

    def _run(self, verb: str, path: str, *arguments: str, given: str | None = None) -> Json:
        command = ["kubectl", *self._options, verb, "--raw", path, *arguments]
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except FileNotFoundError as error:
            raise EngineFailed(
                "kubectl isn't installed", hint="Install kubectl, or add it to PATH."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise EngineFailed(f"kubectl didn't answer within {_SECONDS:g} s") from error
        if done.returncode:
            said = done.stderr.strip()
            raise (NotFound if "NotFound" in said else EngineFailed)(f"kubectl: {said}")
        found: Json = json.loads(done.stdout)
        return found


def _cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "-n",
            "--namespace",
            default="default",
            show_default=True,
            help="The workspace's namespace.",
        ),
        click.option("--context", help="The kubeconfig context to use."),
        click.option("--kubeconfig", help="The kubeconfig file to use."),
    ):
        command = option(command)
    return command


def _kubectl(namespace: str, context: str | None, kubeconfig: str | None) -> Kubectl:
    given = {"--context": context, "--kubeconfig": kubeconfig}
    return Kubectl(namespace, *(f"{name}={value}" for name, value in given.items() if value))


@click.group()
def rollout() -> None:
    """Look at the versions of a workspace in a cluster, and go back to one."""


@rollout.command("history")
@click.argument("name")
@_cluster_options
@pass_console
def show_history(
    console: Console, *, name: str, namespace: str, context: str | None, kubeconfig: str | None
) -> None:
    """List the versions of a workspace, oldest first."""
    kept = _kubectl(namespace, context, kubeconfig).revisions(name)
    console.table(
        ["revision", "variant", "image", "id"],
        [[each.number, each.variant, each.image, each.id] for each in kept],
    )


@rollout.command()
@click.argument("name")
@_cluster_options
@pass_console
def status(
    console: Console, *, name: str, namespace: str, context: str | None, kubeconfig: str | None
) -> None:
    """Show where a workspace's roll-out stands."""
    found = _kubectl(namespace, context, kubeconfig).workspace(name).get("status") or {}
    rows = [
        [each["type"], each["status"], each["reason"], each["message"]]
        for each in found.get("conditions", ())
    ]
    console.table(["condition", "status", "reason", "message"], rows)


@rollout.command()
@click.argument("name")
@click.option(
    "--to-revision", type=click.IntRange(1), help="Which version; by default the one before."
)
@_cluster_options
@pass_console
def undo(
    console: Console, *, name: str, to_revision: int | None, namespace: str, context: str | None, kubeconfig: str | None
) -> None:  # fmt: skip
    """Go back to an earlier version: the same spec, and the same bytes, even where a tag has moved since."""
    cluster = _kubectl(namespace, context, kubeconfig)
    target = pick(cluster.revisions(name), to_revision)
    cluster.replace(with_version(cluster.workspace(name), target))
    console.result(
        {"revision": target.number, "image": target.image, "variant": target.variant},
        f"{name} goes back to revision {target.number}: {target.variant} of {target.image}",
    )


def pick(kept: list[Revision], number: int | None) -> Revision:
    """The version asked for, or the one before the newest. Raises NotFound."""
    if number is not None:
        found = next((each for each in kept if each.number == number), None)
        if found is None:
            numbers = ", ".join(str(each.number) for each in kept) or "none"
            raise NotFound(f"no revision {number} is kept; kept are: {numbers}")
        return found
    if len(kept) < 2:
        raise InvalidInput(
            "there is no version before this one", hint="See: weightyard rollout history."
        )
    return kept[-2]


def with_version(document: Json, revision: Revision) -> Json:
    """The Workspace asking for what a version asked for; everything else stays as it is."""
    spec = {name: value for name, value in document["spec"].items() if name not in ASKED}
    spec |= {name: revision.asked[name] for name in ASKED if name in revision.asked}
    rollout_part = {k: v for k, v in spec.pop("rollout", {}).items() if k != "restartedAt"}
    rollout_part |= revision.asked.get("rollout", {})
    return {**document, "spec": {**spec, **({"rollout": rollout_part} if rollout_part else {})}}
