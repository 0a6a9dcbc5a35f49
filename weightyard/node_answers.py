"""What a Workspace's servers ask of whoever makes nodes, and what those answered: facts in, lines out; pure.

Karpenter's answers are in its NodePools, NodeClaims and Events, Kueue's in the Workload of a pod, the Cluster
Autoscaler's in Events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelimage.errors import InvalidInput
from workspace.controller.conditions import quoted
from workspace.controller.observation.node_news import REASONS
from workspace.controller.observation.nodes import tolerates
from workspace.controller.observation.objects import condition, is_ready, node_of
from workspace.controller.observation.pod_news import event_time
from workspace.document import workspace_of
from workspace.node_demands import demanded_terms
from workspace.node_pools import POOL_LABEL, refusal, trouble
from workspace.provisioning_spec import Provisioner
from workspace.render.pod import tolerations
from workspace.schema import Resources

Json = dict[str, Any]

_CLAIM: Final = ("Launched", "Registered", "Initialized")
_WORKLOAD: Final = ("QuotaReserved", "Admitted", "Evicted")
_REQUEST: Final = ("Provisioned", "Failed", "BookingExpired", "CapacityRevoked")
_MOST: Final = 5  # of a kind
_MOST_EVENTS: Final = 10


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a cluster shows of a Workspace's nodes. Empty is what doesn't exist or may not be read.

    `pods` are its servers and their workers, `events` those about them, `workloads` and `requests` Kueue's in its
    namespace.
    """

    pods: Sequence[Json] = ()
    events: Sequence[Json] = ()
    pools: Sequence[Json] = ()
    claims: Sequence[Json] = ()
    workloads: Sequence[Json] = ()
    requests: Sequence[Json] = ()


def provisioner_of(document: Json) -> Provisioner | None:
    """Who makes a Workspace's nodes; None for one that can't be read."""
    try:
        return workspace_of(document).spec.resources.provisioner
    except InvalidInput:
        return None


def waiting(pods: Iterable[Json]) -> list[Json]:
    """The pods of servers that have no node, or aren't admitted."""
    return [pod for pod in pods if node_of(pod) is None and not is_ready(pod)]


def least_gpus(resources: Resources) -> int:
    """The GPUs that each node of a replica needs; of a count that the planner chooses, at least one."""
    return 1 if resources.node_gpus is None else resources.node_gpus


def pool_refusal(pool: Json, resources: Resources, gpus: int) -> str:
    """Why a NodePool makes no node for a Workspace's servers; empty if it does. `gpus` are those of one node."""
    accepted = tolerations(resources, gpus=gpus)
    return refusal(
        pool, demanded_terms(resources, gpus=gpus), resources.node_selector,
        lambda taint: tolerates(accepted, taint),
    )  # fmt: skip


def node_lines(document: Json, facts: NodeFacts) -> list[str]:
    """What was asked and answered, a line each; none while every server has its node."""
    pods = waiting(facts.pods)
    by = provisioner_of(document)
    if not pods or by is None:
        return []
    said = [f"{pod['metadata']['name']} has no node" for pod in pods[:_MOST]]
    lines = [f"nodes: asked of {by.value}: {', '.join(said)}"]
    if by is Provisioner.KARPENTER:
        lines += _karpenter(document, facts)
    if by is Provisioner.KUEUE:
        lines += _kueue(pods, facts)
    return [*lines, *_events(pods, facts.events)]


def _karpenter(document: Json, facts: NodeFacts) -> Iterator[str]:
    resources = workspace_of(document).spec.resources
    # What the controller planned counts; before that, the least that the spec allows.
    planned = (document.get("status") or {}).get("gpus")
    gpus = least_gpus(resources) if planned is None else int(planned) // resources.nodes
    fitting = []
    for pool in facts.pools[:_MOST]:
        name = pool["metadata"]["name"]
        why = pool_refusal(pool, resources, gpus) or trouble(pool)
        if not why:
            fitting.append(name)
        yield f"  NodePool {name}: {quoted(why) if why else 'makes such nodes'}"
    if not facts.pools:
        yield "  no NodePool is there, or may be read"
    # A claim is of one pool: those of pools that make no such nodes are for others.
    mine = [each for each in facts.claims if _label(each, POOL_LABEL) in fitting]
    for claim in [each for each in mine if _status(each, "Initialized") != "True"][:_MOST]:
        yield f"  NodeClaim {claim['metadata']['name']}: {_conditions(claim, _CLAIM)}"


def _kueue(pods: Sequence[Json], facts: NodeFacts) -> Iterator[str]:
    # By owner: a Workload's name has a hash that only Kueue knows.
    uids = {each["metadata"].get("uid") for each in pods}
    mine = [each for each in facts.workloads if uids & _owners(each)]
    if not mine:
        yield "  no Workload of these pods is there, or may be read"
    for workload in mine[:_MOST]:
        metadata = workload["metadata"]
        yield f"  Workload {metadata['name']}: {_conditions(workload, _WORKLOAD) or 'no condition yet'}"
        checks = (workload.get("status") or {}).get("admissionChecks") or ()
        for check in checks[:_MOST]:
            said = quoted(check.get("message") or "")
            yield f"    check {check.get('name')}: {check.get('state')}" + (f": {said}" if said else "")  # fmt: skip
        for request in [e for e in facts.requests if metadata.get("uid") in _owners(e)][:_MOST]:
            told = _conditions(request, _REQUEST) or "no condition yet"
            yield f"    ProvisioningRequest {request['metadata']['name']}: {told}"


def _events(pods: Sequence[Json], events: Iterable[Json]) -> list[str]:
    """The newest Event of each reason and source, about any of the pods; the oldest of them first."""
    uids = {each["metadata"].get("uid") for each in pods}
    newest: dict[tuple[object, object], Json] = {}
    for each in sorted(events, key=event_time):
        about = (each.get("involvedObject") or {}).get("uid")
        if about in uids and each.get("reason") in REASONS:
            newest[each["reason"], _writer(each)] = each
    # Whoever may write Events names their sources.
    found = sorted(newest.values(), key=event_time)[-_MOST_EVENTS:]
    return [
        f"  {each['reason']} by {quoted(_writer(each))} at {event_time(each)}: {quoted(each.get('message') or '')}"
        for each in found
    ]


def _writer(event: Json) -> str:
    source = (event.get("source") or {}).get("component")
    return str(source or event.get("reportingComponent") or "unknown")


def _conditions(document: Json, kinds: Sequence[str]) -> str:
    """The conditions in their order, each with its message while it doesn't hold."""
    found = []
    for kind in kinds:
        each = condition(document, kind)
        if each:
            why = quoted(each.get("message") or each.get("reason") or "")
            told = f" ({why})" if each.get("status") != "True" and why else ""
            found.append(f"{kind} {str(each.get('status')).lower()}{told}")
    return ", ".join(found)


def _status(document: Json, kind: str) -> str | None:
    return condition(document, kind).get("status")


def _label(document: Json, name: str) -> str | None:
    labels: Mapping[str, str] = document["metadata"].get("labels") or {}
    return labels.get(name)


def _owners(document: Json) -> set[object]:
    return {each.get("uid") for each in document["metadata"].get("ownerReferences") or ()}
