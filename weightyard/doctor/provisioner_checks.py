"""Checks of who makes nodes for a cluster's Workspaces: APIs, node pools and queues. Facts in, findings out; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from cache_agent.api.kube_objects import API_VERSION
from modelimage.errors import InvalidInput
from weightyard.doctor.result import Finding, fail, ok, warn
from weightyard.node_answers import least_gpus, pool_refusal
from workspace.controller.observation.objects import condition
from workspace.document import workspace_of
from workspace.node_pools import trouble
from workspace.provisioning_spec import Provisioner
from workspace.schema import Resources, Workspace

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ApiUse:
    """An API that some Workspaces need: a kind in one of some versions, of which the first is preferred."""

    name: str
    group: str
    plural: str
    versions: tuple[str, ...]
    needs: Callable[[Resources], bool]

    def of(self, workspaces: Iterable[Workspace]) -> list[Workspace]:
        """Those that need it."""
        return [each for each in workspaces if self.needs(each.spec.resources)]


KARPENTER: Final = ApiUse(
    "Karpenter", "karpenter.sh", "nodepools", ("v1",), lambda resources: resources.by_karpenter
)
KUEUE: Final = ApiUse(
    "Kueue", "kueue.x-k8s.io", "localqueues", ("v1beta2", "v1beta1"),
    lambda resources: resources.provisioner is Provisioner.KUEUE,
)  # fmt: skip
USES: Final = (
    KARPENTER,
    KUEUE,
    ApiUse(
        "LeaderWorkerSet", "leaderworkerset.x-k8s.io", "leaderworkersets", ("v1",),
        lambda resources: resources.nodes > 1,
    ),
    ApiUse(
        "CapacityBuffer", "autoscaling.x-k8s.io", "capacitybuffers", ("v1beta1",),
        lambda resources: resources.warm_spares > 0,
    ),
)  # fmt: skip
# What Workspaces ask for is served all the same, from nodes that stand.
_DISPENSABLE: Final = frozenset({"CapacityBuffer"})


@dataclass(frozen=True, slots=True)
class ProvisionerFacts:
    """What a cluster has for those who make nodes.

    `kinds` are the plural names that a group serves, by `group/version`. `pools`, `local_queues` and `cluster_queues`
    are all of them; None where they may not be read. `dra_nodes` offer GPUs by Dynamic Resource Allocation.
    """

    kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    pools: Sequence[Json] | None = ()
    local_queues: Sequence[Json] | None = ()
    cluster_queues: Sequence[Json] | None = ()
    dra_nodes: frozenset[str] = frozenset()


def workspaces(documents: Iterable[Json]) -> list[Workspace]:
    """The Workspaces among some objects; one that can't be read has a condition that says so."""
    found = []
    for each in documents:
        if each["kind"] == "Workspace":
            with suppress(InvalidInput):
                # Items of a list have no apiVersion.
                found.append(workspace_of({"apiVersion": API_VERSION, **each}))
    return found


def apis(facts: ProvisionerFacts, asking: Sequence[Workspace]) -> Finding:
    """Checks that what Workspaces ask for is an API of the cluster."""
    name, used, missing = "node APIs", [], {}
    for use in USES:
        mine = use.of(asking)
        served = [v for v in use.versions if use.plural in facts.kinds.get(f"{use.group}/{v}", ())]
        # What no Workspace asks for may be missing.
        if mine and served:
            used.append(f"{use.name} {served[0]}")
        elif mine:
            missing[use.name] = f"{use.name} ({use.group}/{use.versions[0]}) for {_few(mine)}"
    if not missing:
        return ok(name, ", ".join(used) or "no Workspace asks for any")
    finding = warn if missing.keys() <= _DISPENSABLE else fail
    return finding(
        name,
        f"not served: {'; '.join(missing.values())}",
        "Install it, turn it on, or change spec.resources of these Workspaces.",
    )


def node_pools(facts: ProvisionerFacts, asking: Sequence[Workspace]) -> Finding:
    """Checks that a NodePool makes nodes for each Workspace that asks Karpenter."""
    name, mine = "node pools", KARPENTER.of(asking)
    if not mine:
        return ok(name, "no Workspace asks Karpenter")
    if facts.pools is None:
        return warn(
            name,
            "you may not list NodePools",
            "Run it with an account that may list nodepools.karpenter.sh.",
        )
    for each in mine:
        why = _no_pool(each, facts.pools)
        if why:
            return fail(
                name,
                f"none makes a node for {_name(each)}: {why}",
                "weightyard render FILE --to karpenter --node-class KIND/NAME writes one.",
            )
    return ok(name, f"each of {len(mine)} Workspaces has one")


def queues(facts: ProvisionerFacts, asking: Sequence[Workspace]) -> Finding:
    """Checks that each Workspace's LocalQueue is there and admits: that its ClusterQueue is active."""
    name, mine = "queues", KUEUE.of(asking)
    if not mine:
        return ok(name, "no Workspace asks Kueue")
    if facts.local_queues is None:
        return warn(
            name,
            "you may not list LocalQueues",
            "Run it with an account that may list localqueues.kueue.x-k8s.io.",
        )
    for each in mine:
        why = _no_queue(each, facts)
        if why:
            return fail(
                name,
                f"{_name(each)} isn't admitted: {why}",
                "kubectl describe localqueues,clusterqueues --all-namespaces",
            )
    return ok(name, f"those of {len(mine)} Workspaces are active")


CHECKS: Final = (apis, node_pools, queues)


def _no_pool(workspace: Workspace, pools: Sequence[Json]) -> str:
    resources = workspace.spec.resources
    found = []
    for pool in pools:
        why = pool_refusal(pool, resources, least_gpus(resources)) or trouble(pool)
        if not why:
            return ""
        found.append(f"{pool['metadata']['name']}: {why}")
    return "; ".join(found[:3]) or "there is no NodePool"


def _no_queue(workspace: Workspace, facts: ProvisionerFacts) -> str:
    provisioning, metadata = workspace.spec.resources.provisioning, workspace.metadata
    asked = provisioning.queue if provisioning else None
    queue = _find(facts.local_queues or (), asked, metadata.namespace)
    if queue is None:
        return f"there is no LocalQueue {asked} in its namespace"
    held = (queue.get("spec") or {}).get("clusterQueue")
    cluster = _find(facts.cluster_queues or (), held, None)
    # Where ClusterQueues may not be read, none being found says nothing.
    if cluster is None and facts.cluster_queues is not None:
        return f"there is no ClusterQueue {held}, which LocalQueue {asked} names"
    return next(_inactive(each for each in (cluster, queue) if each is not None), "")


def _inactive(queues: Iterable[Json]) -> Iterator[str]:
    for each in queues:
        active = condition(each, "Active")
        if active.get("status") == "False":
            why = active.get("message") or active.get("reason")
            yield f"queue {each['metadata']['name']} isn't active: {why}"


def _find(documents: Iterable[Json], name: str | None, namespace: str | None) -> Json | None:
    for each in documents:
        metadata = each["metadata"]
        if metadata["name"] == name and namespace in (None, metadata.get("namespace")):
            return each
    return None


def _name(workspace: Workspace) -> str:
    return f"{workspace.metadata.namespace or 'default'}/{workspace.name}"


def _few(found: Sequence[Workspace]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(sorted(map(_name, found))[:3]) + more
