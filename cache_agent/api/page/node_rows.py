"""What is shown of one node: its space, its models, what moves, and problems with what to do. Pure.

From its NodeCache alone for a cluster's page; with what only its agent knows for the node's own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cache_agent.api.heartbeat import is_silent
from cache_agent.api.node_cache import DesiredModelStatus, Held, NodeCache, NodeCacheStatus
from cache_agent.api.node_reasons import NodeReason
from cache_agent.api.page.view import UNKNOWN_MODEL, NodeRows, Row
from cache_agent.api.wire import ExplainView, LeaseView, SpaceReport, VictimView

_COMPLAINING: Final = ("Ready", "Synced", "SpaceSufficient")
MOVING: Final = ("Fetching", "Warming", "Waiting", "Failed")
# Hex digits of a model's key: enough to tell a cluster's models apart, and short in ten thousand cells.
_ID_DIGITS: Final = 20
# Characters of a sentence in a row.
_MOST_SAID: Final = 600
_MOST_VICTIMS: Final = 20
_MOST_HOLDERS: Final = 5


@dataclass(frozen=True, slots=True)
class AgentLook:
    """What a node's own agent knows. `victims`: models in the order in which they would be evicted.

    `leases` are those of now: a NodeCache has those of the agent's last report.
    """

    space: SpaceReport | None = None
    activity: Sequence[ExplainView] = ()
    victims: Sequence[VictimView] = ()
    leases: Sequence[LeaseView] | None = None


def node_problems(node: NodeCache) -> list[str]:
    """What a node's conditions complain of, in their words."""
    messages = (
        each.message
        for each in node.status.conditions
        # `Synced` is true with refused documents as well: the other documents are followed.
        if each.reason == NodeReason.WITH_PROBLEMS
        or (each.type in _COMPLAINING and each.status != "True")
    )
    return list(dict.fromkeys(messages))


def waiting_models(
    node: NodeCache, activity: Sequence[ExplainView] = ()
) -> Iterator[DesiredModelStatus]:
    """Desired models that move or wait, without those among the running pulls."""
    running = {each.image for each in activity}
    for desired in node.status.desired:
        if desired.state in MOVING and desired.image not in running:
            yield desired


def node_rows(node: NodeCache, look: AgentLook = AgentLook()) -> NodeRows:
    """The rows of one node."""
    status = node.status
    models: dict[str, Row] = {}
    cells: dict[str, Row] = {}
    for held in status.models:
        models[_id(held.key)] = _filled(
            name=_short(held.image), image=held.image, variant=held.variant, size=held.size
        )
        cells[_id(held.key)] = _held_cell(held, look)
    names: dict[str, str] = {}
    for desired in status.desired:
        key = _id(desired.model_key) if desired.model_key else UNKNOWN_MODEL + desired.name
        if desired.model_key:
            names[desired.name] = key
        if key not in cells:
            cells[key] = _desired_cell(desired)
        before = models.get(key, {})
        models[key] = {
            **_filled(image=desired.image, variant=desired.variant, size=desired.bytes_total),
            **before,
            "name": desired.name,
        }
    return NodeRows(
        node.name, _node_row(node, look), models, cells, _moves(node, look),
        tuple(_problems(node, look)), names,
    )  # fmt: skip


def node_brief(node: NodeCache) -> NodeRows:
    """What decides whether a view shows a node, and what it says of one that isn't shown: a fraction of its rows."""
    look = AgentLook()
    return NodeRows(node.name, {}, moves=_moves(node, look), problems=tuple(_problems(node, look)))


def known_names(nodes: Iterable[NodeCache], wanted: Container[str]) -> dict[str, str]:
    """The ids of CachedModels' models, of those that are wanted and that any node knows."""
    return {
        each.name: _id(each.model_key)
        for node in nodes
        for each in node.status.desired
        if each.model_key and each.name in wanted
    }


def unknown_names(rows: Iterable[NodeRows]) -> set[str]:
    """The CachedModels whose models these nodes don't know yet."""
    models = {model for each in rows for model in each.models if model.startswith(UNKNOWN_MODEL)}
    return {each.removeprefix(UNKNOWN_MODEL) for each in models}


def _node_row(node: NodeCache, look: AgentLook) -> Row:
    status, space = node.status, node.status.space
    in_use = {each.key for each in status.models if _leases(each, look)}
    leased = sum(each.size for each in status.models if each.key in in_use)
    pinned = sum(each.size for each in status.models if each.pinned and each.key not in in_use)
    own = look.space
    return _filled(
        name=node.name,
        total=own.budget if own else space.total,
        used=own.own if own else space.used,
        free=own.headroom if own else space.free,
        evictable=own.evictable if own else space.evictable,
        promised=own.promised if own else None,
        leased=leased,
        pinned=pinned,
        models=len(status.models),
        held=status.held,
        agent=status.node.agent_version,
        silent=is_silent(node),
        evictNext=_own_victims(look) or _reported_victims(status),
    )  # fmt: skip


def _own_victims(look: AgentLook) -> list[Row]:
    return [
        _filled(model=_id(each.key), image=each.image, frees=each.freed, why=each.why[:_MOST_SAID])
        for each in look.victims[:_MOST_VICTIMS]
    ]


def _reported_victims(status: NodeCacheStatus) -> list[Row]:
    images = {each.key: each.image for each in status.models}
    return [
        _filled(
            model=_id(each.key), image=images.get(each.key, each.key), frees=each.frees,
            uses=each.uses, used=each.last_used, took=each.fetch_seconds,
        )
        for each in status.next_victims
    ]  # fmt: skip


def _holders(held: Held, look: AgentLook) -> list[str]:
    """Pods and processes that use a model, as far as they are known."""
    return [each.pod or each.holder for each in look.leases or () if each.model == held.key]


def _leases(held: Held, look: AgentLook) -> int:
    return held.leases if look.leases is None else len(_holders(held, look))


def _held_cell(held: Held, look: AgentLook) -> Row:
    return _filled(
        state="releasing" if held.state == "Releasing" else "ready",
        tier=held.tier,
        verified=held.verified_at,
        pinned=held.pinned,
        leases=_leases(held, look) or None,
        holders=_holders(held, look)[:_MOST_HOLDERS],
    )


def _desired_cell(desired: DesiredModelStatus) -> Row:
    return _filled(
        state=desired.state.lower(),
        percent=_percent(desired.bytes_done, desired.bytes_total),
        tier=desired.tier,
        verified=desired.verified_at,
        pinned=desired.pinned,
        why=(desired.message or desired.reason)[:_MOST_SAID],
    )


def _moves(node: NodeCache, look: AgentLook) -> dict[str, Row]:
    """Transfers and what waits for one, by an id that stays while they last."""
    found = {}
    for view in look.activity:
        found[f"{node.name}/{view.subject}/{view.image}"] = _filled(
            what=view.subject.removeprefix("image "),
            image=view.image,
            node=node.name,
            # It is the pod that waits: once the size is known, its bytes come.
            state="fetching" if view.state == "waiting" and view.total else view.state,
            percent=_percent(view.done, view.total),
            done=view.done,
            total=view.total,
            rate=int(view.bytes_per_second),
            left=None if view.seconds_left is None else int(view.seconds_left),
            sources=sorted(view.sources),
            # While its bytes come, the numbers tell all.
            why="" if view.bytes_per_second and view.state == "waiting" else view.text[:_MOST_SAID],
            since=view.since,
        )
    # After the transfers, and only what none of them brings: a model has one row.
    for desired in waiting_models(node, look.activity):
        found[f"{node.name}/desired/{desired.name}"] = _filled(
            what=desired.name,
            image=desired.image,
            model=_id(desired.model_key) if desired.model_key else None,
            node=node.name,
            state=desired.state.lower(),
            percent=_percent(desired.bytes_done, desired.bytes_total),
            done=desired.bytes_done,
            total=desired.bytes_total,
            rate=desired.bytes_per_second,
            left=desired.seconds_left,
            sources=list(desired.sources),
            why=(desired.message or desired.reason)[:_MOST_SAID],
        )
    return found


def _problems(node: NodeCache, look: AgentLook) -> Iterator[Row]:
    for said in node_problems(node):
        what = said[:_MOST_SAID]
        if is_silent(node):
            what = (
                f"{what}. See its pod: kubectl get pods --field-selector spec.nodeName={node.name}"
            )
        yield {"where": node.name, "what": what}
        if is_silent(node):
            return
    for desired in node.status.desired:
        if desired.state == "Failed":
            said = desired.message or desired.reason
            yield {"where": f"{desired.name} on {node.name}", "what": said[:_MOST_SAID]}
    for view in look.activity:
        if view.state == "failed":
            yield {"where": f"{view.subject} on {node.name}", "what": view.text[:_MOST_SAID]}


def _id(key: str) -> str:
    return key.removeprefix("sha256:")[:_ID_DIGITS]


def _short(image: str) -> str:
    """An image's last part, without its digest: `team/llama:v1@sha256:…` is `llama:v1`."""
    return image.partition("@")[0].rpartition("/")[2] or image


def _percent(done: int, total: int | None) -> int | None:
    # Rounded down: 100 would be shown before the last byte.
    return 100 * done // total if total else None


def _filled(**values: Any) -> Row:
    """A row without empty values."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value not in ("", [], ())
    }
