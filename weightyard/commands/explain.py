"""`weightyard explain`: shows why a pod, an image or a workspace waits, the sources of its bytes, and the time left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from cache_agent.api.wire import ExplainView, to_document
from cache_agent.daemon.cache_api import open_cache
from modelimage.errors import NotFound, WeightyardError
from weightyard.cluster_starts import find_starts
from weightyard.console import Console, pass_console
from weightyard.kubectl import cluster_options, kubectl
from weightyard.options import ModelName, root_option
from weightyard.start_text import start_lines
from weightyard.text import format_bytes, format_duration, one_line
from weightyard.up.state import State, all_workspaces, condition, is_running
from weightyard.workspace_names import workspace_named
from workspace.startup import Startup

Found = tuple[list[dict[str, Any]], str]


class _Subject(ModelName):
    """An image, or the name of a workspace or a pod; a Workspace's file stands for its name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(workspace_named(str(value)), param, ctx)


@click.command()
@click.argument("subject", type=_Subject(), metavar="WORKSPACE|POD|IMAGE")
@click.option("-n", "--namespace", help="Look in this namespace of the cluster.")
@cluster_options
@root_option
@pass_console
def explain(
    console: Console, *, subject: str, namespace: str | None, context: str | None,
    kubeconfig: str | None, root: Path,
) -> None:  # fmt: skip
    """Show what a workspace or pod waits for and how its server started, or the state of an image.

    A pod is named by its UID, its name, or namespace/name. Of an image that is desired and not here, it says what it
    waits for, or why it failed and when it is tried again; the name in `weightyard status` finds it too. What this
    node's cache doesn't know is looked for among the workspaces of this machine, then in the cluster.
    """
    if namespace or context or kubeconfig:
        found = find_starts(kubectl(context, kubeconfig), subject, namespace)
        console.result([found.to_document()], found.text())
        return
    console.result(*(_local(subject, root) or _elsewhere(subject, root)))


def _local(subject: str, root: Path) -> Found | None:
    """A workspace of this machine; None if there is none of this name."""
    state = next((each for each in all_workspaces(root) if each.name == subject), None)
    return None if state is None else ([_document(state)], _state_text(state))


def _elsewhere(subject: str, root: Path) -> Found:
    """What the node's cache says, or the cluster. Raises NotFound in the cache's words if neither knows the subject."""
    try:
        with open_cache(root, create=False) as cache:
            views = cache.explain(subject)
    except NotFound:
        try:
            found = find_starts(kubectl(None, None), subject, None)
        except WeightyardError:
            found = None
        if found is None:
            raise
        return [found.to_document()], found.text()
    now = time.time()
    return [to_document(view) for view in views], "\n".join(_text(view, now) for view in views)


def _document(state: State) -> dict[str, Any]:
    return {
        "subject": state.name, "state": condition(state), "image": state.image,
        "text": state.failure.message if state.failure else "", "since": state.started_at,
        "startup": [state.startup] if state.startup else [],
    }  # fmt: skip


def _state_text(state: State) -> str:
    failed = f": {state.failure.message}" if state.failure else ""
    lines = [f"{state.name}: {condition(state)}{failed}", f"  image: {state.image}"]
    if state.startup:
        lines += start_lines(Startup.model_validate(state.startup), is_over=not is_running(state))
    # Messages quote others, who must not begin a line of ours.
    return "\n".join(map(one_line, lines))


def _text(view: ExplainView, now: float) -> str:
    lines = [f"{view.subject}: {view.state}: {view.text}"]
    if view.image and view.image not in view.subject:
        lines.append(f"  image: {view.image}")
    if view.desired_by:
        lines.append(f"  desired by: {', '.join(view.desired_by)}")
    if view.total:
        lines.append(f"  here: {format_bytes(view.done)} of {format_bytes(view.total)}")
    lines += [f"  from {name}: {format_bytes(size)}" for name, size in view.sources.items()]
    if view.bytes_per_second >= 1:
        lines.append(f"  rate: {format_bytes(view.bytes_per_second)}/s")
    if view.seconds_left is not None:
        lines.append(f"  left: {format_duration(view.seconds_left)}")
    if view.failures:
        times = "once" if view.failures == 1 else f"{view.failures} times in a row"
        lines.append(f"  failed: {times}")
    if view.retry_at is not None:
        left = view.retry_at - now
        lines.append(f"  tried again: {f'in {format_duration(left)}' if left > 0 else 'now'}")
    if view.since:
        lines.append(f"  since: {format_duration(max(0.0, now - view.since))}")
    # Messages quote others, who must not begin a line of ours.
    return "\n".join(map(one_line, lines))
