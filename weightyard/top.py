"""What `weightyard top` shows: sections of rows for one node or for a cluster, and their text. Pure.

Sizes are bytes, times seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cache_agent.api.node_cache import DesiredModelStatus, NodeCache
from cache_agent.api.page.node_rows import MOVING, node_problems, waiting_models
from cache_agent.api.wire import ExplainView, SpaceReport, to_document
from weightyard.console import format_table
from weightyard.text import format_bytes, format_duration, one_line
from weightyard.up.server_rows import ServerLoad
from weightyard.up.state import State, condition, is_running

Json = dict[str, Any]
Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A table under a title, or `empty` where it has no rows."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    empty: str

    def lines(self, width: int) -> list[str]:
        """The table in lines of at most `width` characters; longer ones end early."""
        if not self.rows:
            return [f"{self.title}: {self.empty}"[:width]]
        table = format_table(self.columns, self.rows, width=width)
        # A terminal too narrow for the headings would wrap the lines, and the frame would jump.
        return [self.title, *(line[:width] for line in table.splitlines())]


@dataclass(frozen=True, slots=True)
class Frame:
    """One look at a node or a cluster. `document` is the same for programs. `failure`: why this isn't of now."""

    heading: str
    sections: Sequence[Section]
    document: Json
    problems: Sequence[str] = field(default=())
    failure: str = ""

    def text(self, width: int, height: int | None = None) -> str:
        """The frame in `width` columns and, if a height is given, that many lines: the last says how many are left."""
        lines = [
            one_line(self.heading)[:width],
            *(f"! {one_line(each)}"[:width] for each in (self.failure, *self.problems) if each),
        ]
        for section in self.sections:
            lines += ["", *section.lines(width)]
        # What is longer than the terminal would scroll its own beginning away.
        if height is not None and len(lines) > height:
            left = len(lines) - height + 1
            lines = [*lines[: height - 1], f"… {left} more lines: weightyard top --once"[:width]]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class NodeLook:
    """What one look at this machine found. `loads`: by workspace, of servers that answered."""

    node: NodeCache
    space: SpaceReport
    activity: Sequence[ExplainView]
    servers: Sequence[State] = ()
    loads: dict[str, ServerLoad] = field(default_factory=dict)


def node_frame(look: NodeLook, now: float) -> Frame:
    """The frame of this machine: transfers and waiting pods, servers, cached models."""
    space, status = look.space, look.node.status
    heading = (
        f"{look.node.name}: {format_bytes(space.own)} cached of {format_bytes(space.budget)}, "
        f"{format_bytes(space.headroom)} free, {format_bytes(space.evictable)} evictable"
    )
    moving = [_activity_row(each) for each in look.activity]
    moving += [_desired_row(each) for each in waiting_models(look.node, look.activity)]
    sections = [
        Section(
            "TRANSFERS", ("what", "state", "%", "size", "rate", "left", "from"), moving,
            "nothing is fetched, and no pod waits",
        ),
        Section(
            "SERVERS", ("name", "state", "model", "port", "runs", "waits", "up"),
            [_server_row(each, look.loads.get(each.name), now) for each in look.servers],
            "none runs here; start one with `weightyard up`",
        ),
        Section(
            "MODELS", ("image", "variant", "size", "tier", "pinned", "leases"),
            [
                (each.image, each.variant, format_bytes(each.size), each.tier, _yes(each.pinned), each.leases or None)
                for each in status.models
            ],
            "none is cached; see `weightyard pull --help`",
        ),
    ]  # fmt: skip
    return Frame(heading, sections, _node_document(look), node_problems(look.node))


def cluster_frame(nodes: Sequence[NodeCache], workspaces: Sequence[Json]) -> Frame:
    """The frame of a cluster, from its NodeCaches and Workspaces."""
    space = [each.status.space for each in nodes]
    heading = (
        f"{len(nodes)} node{'s' * (len(nodes) != 1)}: {format_bytes(sum(each.used for each in space))} cached of "
        f"{format_bytes(sum(each.total for each in space))}, "
        f"{format_bytes(sum(each.free for each in space))} free"
    )
    moving = [
        (f"{wanted.name} on {node.name}", *_desired_row(wanted)[1:])
        for node in nodes
        # Those at rest aren't listed: among hundreds, the few that move would be lost.
        for wanted in node.status.desired
        if wanted.state in MOVING
    ]
    sections = [
        Section(
            "TRANSFERS", ("what", "state", "%", "size", "rate", "left", "note"), moving,
            "nothing is fetched",
        ),
        Section(
            "WORKSPACES", ("name", "ready", "state", "why"), [_workspace_row(each) for each in workspaces],
            "none",
        ),
        Section(
            "NODES", ("node", "held", "used", "free", "models", "leases"),
            [_node_row(each) for each in nodes], "none has an agent",
        ),
    ]  # fmt: skip
    found = [f"{node.name}: {each}" for node in nodes for each in node_problems(node)]
    document = {
        "nodes": [each.to_document() for each in nodes],
        "workspaces": [
            {"metadata": each.get("metadata"), "status": each.get("status")} for each in workspaces
        ],
    }
    return Frame(heading, sections, document, found)


def _activity_row(view: ExplainView) -> Row:
    return (
        view.subject.removeprefix("image "),
        "fetching" if view.state == "waiting" and view.total else view.state,
        _percent(view.done, view.total),
        format_bytes(view.total) if view.total else None,
        _rate(view.bytes_per_second),
        None if view.seconds_left is None else format_duration(view.seconds_left),
        _note(view),
    )


def _note(view: ExplainView) -> str | None:
    """Where its bytes come from, while they come; else what is told of it."""
    if view.state == "failed" or (view.total and not view.bytes_per_second):
        return view.text
    return ", ".join(view.sources) or None


def _desired_row(wanted: DesiredModelStatus) -> Row:
    return (
        wanted.name,
        wanted.state.lower(),
        _percent(wanted.bytes_done, wanted.bytes_total),
        format_bytes(wanted.bytes_total) if wanted.bytes_total else None,
        _rate(wanted.bytes_per_second),
        None if wanted.seconds_left is None else format_duration(wanted.seconds_left),
        wanted.message or wanted.reason or None,
    )


def _server_row(state: State, load: ServerLoad | None, now: float) -> Row:
    return (
        state.name, condition(state), state.served_name or None, state.port,
        load.running if load else None, load.waiting if load else None,
        format_duration(max(0.0, now - state.started_at)) if is_running(state) else None,
    )  # fmt: skip


def _workspace_row(document: Json) -> Row:
    metadata, status = document.get("metadata") or {}, document.get("status") or {}
    ready: Json = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})
    return (
        f"{metadata.get('namespace', '')}/{metadata.get('name', '')}",
        f"{status.get('readyReplicas', 0)}/{status.get('replicas', 0)}",
        ready.get("reason") or "Unseen",
        None if ready.get("status") == "True" else ready.get("message"),
    )


def _node_row(node: NodeCache) -> Row:
    status = node.status
    return (
        node.name, status.held, format_bytes(status.space.used), format_bytes(status.space.free),
        len(status.models), sum(each.leases for each in status.models) or None,
    )  # fmt: skip


def _node_document(look: NodeLook) -> Json:
    return {
        "node": look.node.to_document(),
        "space": to_document(look.space),
        "activity": [to_document(each) for each in look.activity],
        "servers": [
            {
                "name": each.name, "state": condition(each), "model": each.served_name, "url": each.url,
                "running": load.running if load else None, "waiting": load.waiting if load else None,
            }
            for each in look.servers
            for load in [look.loads.get(each.name)]
        ],
    }  # fmt: skip


def _percent(done: int, total: int | None) -> str | None:
    # Rounded down: 100% would be shown before the last byte.
    return f"{100 * done // total}%" if total else None


def _rate(value: float) -> str | None:
    return f"{format_bytes(value)}/s" if value >= 1 else None


def _yes(value: bool) -> str | None:
    return "yes" if value else None
