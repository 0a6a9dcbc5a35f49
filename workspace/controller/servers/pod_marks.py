"""Annotations of running pods that tell others which to stop first, and which not yet. Pure.

`pod-deletion-cost` orders the ready pods of a ReplicaSet that scales in, cheapest first; of equals the youngest goes.
`do-not-disrupt` keeps Karpenter from moving a pod whose model is still being fetched or loaded, which would begin anew.
Marks are written when they change something: costs in the pass that scales in, or where others may at any time. Each
has a companion with the same value, by which ours are told from others': those are neither changed nor removed, but for
the cost of a server whose node goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from workspace.controller.observation.mount_news import MountNews
from workspace.controller.observation.objects import has_ended, is_ready, node_of
from workspace.controller.observation.observed import Annotate, Reference
from workspace.controller.servers.replacements import Departures
from workspace.render import names

Json = dict[str, Any]

COST: Final = "controller.kubernetes.io/pod-deletion-cost"
DO_NOT_DISRUPT: Final = "karpenter.sh/do-not-disrupt"
# The companions: whoever writes another value than ours has taken the mark over.
OURS: Final[Mapping[str, str]] = {
    COST: f"{names.DOMAIN}/deletion-cost",
    DO_NOT_DISRUPT: f"{names.DOMAIN}/do-not-disrupt",
}
# Costs: of servers whose node goes, of those on spot nodes, of the others; to each its running requests are added.
_LEAVING: Final = -20_000
_SPOT: Final = -10_000
# Below the distance of two costs, so that requests never lift a server into the next class.
_MOST_REQUESTS: Final = 9_999


def deletion_costs(
    servers: Sequence[Json], gone: Departures, *, spot: Iterable[str], running: Mapping[str, float], ordered: bool
) -> dict[str, str | None]:  # fmt: skip
    """The cost that each server is to have, by uid, as far as it must change.

    `spot` are nodes of that capacity, `running` the requests of servers that were measured, by uid. Without `ordered`,
    while none of those that stay may be stopped, only leaving servers get a cost, and lose it if they stay after all.
    """
    on_spot = frozenset(spot)
    wanted = {
        _uid(pod): _LEAVING
        if gone.takes(pod)
        else _SPOT * (node_of(pod) in on_spot) + min(_MOST_REQUESTS, int(running.get(_uid(pod), 0)))
        for pod in servers
    }
    # Among equals the ReplicaSet's own order is right: no write says it again.
    ordered = ordered and len(set(wanted.values())) > 1
    found: dict[str, str | None] = {}
    for pod in servers:
        there, cost = _annotation(pod, COST), str(wanted[_uid(pod)])
        if not gone.takes(pod) and _is_others(pod, COST):
            continue
        if gone.takes(pod) or ordered:
            if there != cost:
                found[_uid(pod)] = cost
        elif there == str(_LEAVING):
            found[_uid(pod)] = None
    return found


def is_cheapest(server: Json) -> bool:
    """Whether a server has the cost by which it goes before all that stay. Who may not write marks never sees it."""
    return _annotation(server, COST) == str(_LEAVING)


def disruption_marks(
    pods: Iterable[Json], gone: Departures, mounts: Mapping[str, MountNews], *, marked: bool
) -> dict[str, str | None]:
    """Whether each pod is to have `do-not-disrupt`, by uid, as far as that must change: while its model comes to it.

    Never on a node that goes, where it would hold up the eviction; and no longer once something failed.
    """
    found: dict[str, str | None] = {}
    for pod in pods:
        news = mounts.get(_uid(pod))
        # Whoever set a mark first means it, whatever it says.
        if _is_others(pod, DO_NOT_DISRUPT):
            continue
        comes = marked and not gone.takes(pod) and not (news and news.failed) and _is_starting(pod)
        there = _annotation(pod, DO_NOT_DISRUPT) == "true"
        if comes != there:
            found[_uid(pod)] = "true" if comes else None
    return found


def marking(pods: Iterable[Json], marks: Mapping[str, Mapping[str, str | None]]) -> list[Annotate]:
    """The writes for marks by annotation and uid: one for each pod that has any."""
    writes = []
    for pod in pods:
        changed = {
            key: found[_uid(pod)]
            for name, found in marks.items()
            if _uid(pod) in found
            for key in (name, OURS[name])
        }
        if changed:
            where = Reference("Pod", str(pod["metadata"]["name"]))
            writes.append(Annotate(where, _uid(pod), changed))
    return writes


def _is_starting(pod: Json) -> bool:
    """Whether a pod has a node and our container in it has never been ready or ended."""
    if node_of(pod) is None or is_ready(pod) or has_ended(pod):
        return False
    states = (pod.get("status") or {}).get("containerStatuses") or ()
    # `started` stays true from the startup probe's success to the container's end; readiness comes and goes.
    return not any(
        each.get("started") or each.get("restartCount") or "terminated" in (each.get("state") or {})
        for each in states
        # Without a startup probe, one beside the server has started at once.
        if each.get("name") in (names.SERVER_CONTAINER, names.PREWARM)
    )


def _is_others(pod: Json, name: str) -> bool:
    there = _annotation(pod, name)
    return there is not None and there != _annotation(pod, OURS[name])


def _uid(pod: Json) -> str:
    return str(pod["metadata"].get("uid"))


def _annotation(pod: Json, name: str) -> str | None:
    found = (pod["metadata"].get("annotations") or {}).get(name)
    return None if found is None else str(found)
