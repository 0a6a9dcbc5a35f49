"""`weightyard rollout`: the versions of a workspace, and the rollout of a new one beside the one that serves."""

from __future__ import annotations

from typing import Any, Final

import click

from modelimage.errors import InvalidInput, NotFound
from weightyard.advanced import SuggestingGroup
from weightyard.console import Console, pass_console
from weightyard.kubectl import Kubectl, cluster_options, kubectl
from weightyard.options import WholeNumber
from weightyard.workspace_names import WorkspaceName
from workspace.controller.observation.revisions import POD_PARTS, Revision, history
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.render import names
from workspace.rollout_status import RolloutPhase, RolloutStatus, RouteStatus

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


@click.group(cls=SuggestingGroup)
def rollout() -> None:
    """Follow and steer how a workspace in a cluster changes its version."""


@rollout.command("history")
@click.argument("name", type=WorkspaceName(), metavar="NAME")
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
    """List the versions, oldest first."""
    kept = _reach(namespace, context, kubeconfig).revisions(name)
    console.table(
        ["revision", "variant", "image", "id"],
        [[each.number, each.variant, each.image, each.id] for each in kept],
        empty=f"{name} has no versions yet",
    )


@rollout.command()
@click.argument("name", type=WorkspaceName(), metavar="NAME")
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
    """Show how far a new version is.

    With it how it compares with the version that serves, and the workspace's conditions.
    """
    found = _reach(namespace, context, kubeconfig).workspace(name).get("status") or {}
    # For programs it is whole; for people each part that there is has its own table.
    if console.json:
        kept = {part: found.get(part) for part in ("conditions", "rollout", "revision", "route")}
        console.result(kept, "")
        return
    state = rollout_before({"status": found})
    if state is not None:
        console.table(["rollout", ""], _rows(state), empty="no rollout")
        if state.measures:
            console.table(
                ["measure", "serving", "new", "limit", "passed"],
                [
                    [
                        each.name,
                        each.stable,
                        each.candidate,
                        each.limit,
                        "yes" if each.passed else "no",
                    ]
                    for each in state.measures
                ],
                empty="no measures",
            )
    route = found.get("route")
    if route is not None:
        console.table(
            ["route", ""], _route_rows(RouteStatus.model_validate(route)), empty="no route"
        )
    rows = [
        [each["type"], each["status"], each["reason"], each["message"]]
        for each in found.get("conditions", ())
    ]
    console.table(
        ["condition", "status", "reason", "message"],
        rows,
        empty=f"{name} has no conditions yet: no controller has seen it",
    )


def _rows(state: RolloutStatus) -> list[list[str]]:
    steps = f"{min(state.step + 1, state.steps)} of {state.steps}" if state.is_open else "-"
    return [
        ["new version", state.version],
        ["serving before", state.stable],
        ["phase", f"{state.phase.value} ({state.reason})" if state.reason else state.phase.value],
        ["step", steps],
        ["requests to the new version", f"{state.attained} % (wanted: {state.weight} %)"],
        *_probe_rows(state),
        ["since", state.since],
        ["why", state.message],
    ]


def _route_rows(route: RouteStatus) -> list[list[str]]:
    return [
        ["weight of the new version, wanted", f"{route.wanted} %"],
        ["in the HTTPRoute", f"{route.written} %"],
        ["accepted by all Gateways", route.accepted],
        *(
            [
                f"Gateway {each.name}",
                f"accepted: {each.accepted}; backends known: {each.resolved}. {each.message}".rstrip(),
            ]
            for each in route.parents
        ),
    ]


def _probe_rows(state: RolloutStatus) -> list[list[str]]:
    found = state.probes
    if found is None:
        return []
    said = f"{found.passed} of {found.total} passed"
    return [["probes", f"{said}; first {found.first}: {found.cause}" if found.first else said]]


@rollout.command()
@click.argument("name", type=WorkspaceName(), metavar="NAME")
@_in_namespace
@cluster_options
@pass_console
def pause(
    console: Console, *, name: str, namespace: str | None, context: str | None, kubeconfig: str | None
) -> None:  # fmt: skip
    """Hold the rollout at its step.

    It stays there until it is resumed. A version that is worse is still taken back.
    """
    cluster = _reach(namespace, context, kubeconfig)
    document = cluster.workspace(name)
    _state(document)
    _ask(console, cluster, document, {names.PAUSE: "true"}, "pauses")


@rollout.command()
@click.argument("name", type=WorkspaceName(), metavar="NAME")
@_in_namespace
@cluster_options
@pass_console
def resume(
    console: Console, *, name: str, namespace: str | None, context: str | None, kubeconfig: str | None
) -> None:  # fmt: skip
    """Go on with the rollout.

    After a pause, past a comparison that says nothing, or again with a version that was taken back.
    """
    cluster = _reach(namespace, context, kubeconfig)
    document = cluster.workspace(name)
    state = _state(document)
    # What was paused by hand goes on where it was: the step that it is at stays to be done.
    by_hand = (document["metadata"].get("annotations") or {}).get(names.PAUSE) == "true"
    asked = {} if by_hand and not state.is_withdrawn else {names.RESUME: state.token}
    _ask(console, cluster, document, asked, "goes on")


@rollout.command()
@click.argument("name", type=WorkspaceName(), metavar="NAME")
@_in_namespace
@cluster_options
@pass_console
def promote(
    console: Console, *, name: str, namespace: str | None, context: str | None, kubeconfig: str | None
) -> None:  # fmt: skip
    """Let the new version take over now.

    The steps that are left are skipped; the old version serves until the new one is ready.
    """
    cluster = _reach(namespace, context, kubeconfig)
    document = cluster.workspace(name)
    version = _state(document).version
    _ask(console, cluster, document, {names.PROMOTE: version}, f"is promoted to {version}")


@rollout.command()
@click.argument("name", type=WorkspaceName(), metavar="NAME")
@_in_namespace
@cluster_options
@pass_console
def abort(
    console: Console, *, name: str, namespace: str | None, context: str | None, kubeconfig: str | None
) -> None:  # fmt: skip
    """Take the new version back.

    The version before gets all requests again.
    """
    cluster = _reach(namespace, context, kubeconfig)
    document = cluster.workspace(name)
    state = _state(document)
    if not state.is_open:
        raise InvalidInput(
            f"{state.version} takes over already",
            hint=f"Return with: weightyard rollout undo {name}.",
        )
    _ask(console, cluster, document, {names.ABORT: state.version}, f"goes back to {state.stable}")


def _state(document: Json) -> RolloutStatus:
    """Where the rollout stands. Raises InvalidInput when none goes on that could be steered."""
    name, found = document["metadata"]["name"], rollout_before(document)
    if found is None or found.phase is RolloutPhase.COMPLETED:
        raise InvalidInput(
            f"no new version of {name} is being rolled out step by step",
            hint="spec.rollout.strategy canary or blueGreen does that; see: weightyard rollout history.",
        )
    return found


def _ask(
    console: Console, cluster: Cluster, document: Json, asked: dict[str, str], what: str
) -> None:
    """Asks by annotations of the Workspace that was read: a concurrent edit makes it fail and isn't lost."""
    cluster.replace(_asked(document, asked))
    name = document["metadata"]["name"]
    console.result(
        {"workspace": name, "asked": asked},
        f"{name} {what}; follow it with: weightyard rollout status {name}",
    )


@rollout.command()
@click.argument("name", type=WorkspaceName(), metavar="NAME")
@click.option(
    "--to-revision",
    type=WholeNumber(1),
    help="Revision to go back to; by default the previous one.",
)
@_in_namespace
@cluster_options
@pass_console
def undo(
    console: Console, *, name: str, to_revision: int | None, namespace: str | None, context: str | None,
    kubeconfig: str | None,
) -> None:  # fmt: skip
    """Return to an earlier version.

    The same spec and the same bytes, even if a tag has moved since.
    """
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
    returned = {**document, "spec": {**spec, **({"rollout": rollout_part} if rollout_part else {})}}
    # What served before needs no proof step by step.
    if rollout_part.get("strategy", "rolling") == "rolling":
        return returned
    return _asked(returned, {names.PROMOTE: revision.name})


def _asked(document: Json, asked: dict[str, str]) -> Json:
    """The Workspace with what is asked of its rollout, in place of whatever was asked before."""
    metadata = document["metadata"]
    kept = {
        name: value
        for name, value in (metadata.get("annotations") or {}).items()
        if name not in names.ROLLOUT_COMMANDS
    }
    return {**document, "metadata": {**metadata, "annotations": {**kept, **asked}}}
