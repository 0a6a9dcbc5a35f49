"""A cluster whose nodes come and go in virtual time, as Karpenter makes them: claims that launch, register and
initialise, spot nodes that are taken back after a notice, and consolidation. The deciding code is the controller's own.

After Karpenter v1's pages on disruption and scheduling: a voluntary disruption taints the node first, waits until its
replacement is initialised, then deletes the node, which evicts pods as budgets allow; expiry, and whoever deletes a
NodeClaim, deletes it at once; so does an interruption, with an Event, and the instance ends with its notice. Pods with
`do-not-disrupt` are neither candidates nor evicted.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from cache_agent.api.cached_model import CachedModel
from cache_agent.api.kube_objects import timestamp
from cache_agent.api.shared_names import STARTUP_TAINT
from tests.workspace.controller import caches
from tests.workspace.controller.evictions import may_evict
from tests.workspace.controller.fakeapi import FakeApi, Missing
from tests.workspace.controller.simulation import GPU, NAME, NAMESPACE, Cluster, _image
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.observation.node_labels import (
    parse_node_cache,
    wanted_marks,
    without_taint,
)
from workspace.controller.observation.nodes import KubeNode
from workspace.controller.observation.objects import is_ready, node_of
from workspace.controller.observation.observed import Decision
from workspace.controller.servers.pod_marks import DO_NOT_DISRUPT
from workspace.node_demands import CAPACITY_TYPE
from workspace.node_terms import match
from workspace.render import names

Json = dict[str, Any]
ZONE: Final = "topology.kubernetes.io/zone"
DISRUPTED: Final = "karpenter.sh/disrupted"
UNREGISTERED: Final = "karpenter.sh/unregistered"
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
_L4: Final = {
    "karpenter.k8s.aws/instance-gpu-name": "l4",
    "karpenter.k8s.aws/instance-gpu-count": "1",
    "karpenter.k8s.aws/instance-gpu-memory": "22888",
}
_PINNED: Final = caches.cached_model("pinned", pin=True) | {
    "metadata": {"name": "pinned", "generation": 1}
}


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds that things take."""

    launch: int = 45  # until the Node is there
    register: int = 5
    verify: int = 30  # until pinned models are verified
    fetch: int = 60
    load: int = 90
    notice: int = 120
    request: int = 30  # the longest request: a server that is told to stop takes as long
    consolidate: int = 600  # that a node must be empty or dearer than needed

    @property
    def replacement(self) -> int:
        """Until a server is ready that has no node yet; one that fetches first, and one that then serves."""
        return self.launch + self.register + self.verify + 2 * self.fetch + self.load


class SharedApi(FakeApi):
    """Returns its objects themselves, which nobody here changes: hours of a cluster are read a million times."""

    def get(self, kind: str, namespace: str, name: str) -> Json:
        try:
            return self.objects[kind, namespace, name]
        except KeyError:
            raise Missing(f"{kind} {namespace}/{name}") from None

    def list(
        self, kind: str, namespace: str | None = None, labels: dict[str, str] | None = None
    ) -> list[Json]:
        return [
            each
            for (k, ns, _), each in sorted(self.objects.items())
            if k == kind
            and namespace in (None, ns)
            and (labels or {}).items() <= (each["metadata"].get("labels") or {}).items()
        ]


class Market:
    """Which capacity can be had now: the zones with spot capacity, and whether there is any on-demand."""

    def __init__(self, zones: tuple[str, ...] = ("a", "b", "c")) -> None:
        self.zones = zones
        self.spot = set(zones)
        self.on_demand = True

    def has(self, kind: str, zone: str) -> bool:
        return zone in self.spot if kind == "spot" else self.on_demand


@dataclass
class Claim:
    """A NodeClaim: what it is, the pod that it is made for, how far it has come, and when its instance ran."""

    name: str
    kind: str
    zone: str
    pod: str
    launched_at: float
    replaces: str = ""
    initialized: bool = False
    ended_at: float | None = None
    appeared_at: float | None = None
    gone_at: float | None = None


@dataclass
class Ledger:
    """What happened: claims, servers that lost requests, and every change of the Deployments' sizes."""

    claims: list[Claim] = field(default_factory=list)
    lost: list[tuple[float, str]] = field(default_factory=list)  # when, and on which node
    interrupted: list[tuple[float, int]] = field(default_factory=list)  # when, and how many servers
    resized: list[tuple[float, str, int]] = field(default_factory=list)


class ElasticCluster(Cluster):
    """`check` is called after every pass and every step of the cluster."""

    def __init__(
        self, delays: Delays, market: Market, check: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(api=SharedApi())
        self.delays, self.market, self.check = delays, market, check
        self.clock = 0.0
        self.ledger = Ledger()
        self.claims: dict[str, Claim] = {}
        self.draining: dict[
            str, tuple[str, float]
        ] = {}  # pods that finish their requests: node and end
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ready_at: dict[str, float] = {}
        self._fetched_at: dict[tuple[str, str], float] = {}
        self._idle_since: dict[str, float] = {}
        self._events: list[Json] = []
        self._cache = WatchCache()
        self.api.watchers.append(self._watch)
        self.after(60, self._consolidate)

    # Time

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.clock + seconds, next(self._order), what))

    def run_until(self, end: float) -> None:
        """Lets everything that is due happen, with as many passes after each event as change something."""
        self._settle_instant()
        while self._due and self._due[0][0] <= end:
            self.clock = self._due[0][0]
            self.now = self.api.now = timestamp(_EPOCH + self.clock)
            before = len(self.api.writes)
            while self._due and self._due[0][0] <= self.clock:
                heapq.heappop(self._due)[2]()
            if len(self.api.writes) != before:
                self._settle_instant()
        self.clock = end
        self.now = self.api.now = timestamp(_EPOCH + end)

    def _settle_instant(self) -> None:
        for _ in range(80):
            before = len(self.api.writes)
            self.reconcile()
            self.check()
            self.step()
            self.check()
            if len(self.api.writes) == before:
                return
        raise AssertionError(f"no rest at {self.clock}: {self.api.writes[-8:]}")

    def reconcile(self, **faults: Any) -> Decision:
        before = self.sizes()
        decision = super().reconcile(**faults)
        for name, count in self.sizes().items():
            if before.get(name) != count:
                self.ledger.resized.append((self.clock, name, count))
        return decision

    def step(self) -> None:
        self.run_deployments()
        self.provision()
        self.schedule()
        self.run_kubelets()
        self._evict()

    def nodes(self) -> tuple[KubeNode, ...]:
        """From the controller's own cache, which knows Karpenter's Events."""
        return self._cache.nodes()

    # What can be asked

    def sizes(self) -> dict[str, int]:
        """The Deployments of servers with their numbers of replicas."""
        return {
            each["metadata"]["name"]: each["spec"]["replicas"]
            for each in self.api.list("Deployment", NAMESPACE)
            if each["metadata"]["name"] != names.activator(NAME)
        }

    def off_spot(self) -> int:
        """The ready servers on capacity that isn't spot."""
        return sum(self.claims[str(node_of(pod))].kind != "spot" for pod in self.ready_servers())

    def nodes_of(self, kind: str) -> list[str]:
        return [name for name, each in self.claims.items() if each.kind == kind]

    # Provisioning

    def provision(self) -> None:
        """A claim for each server that fits no node and has none yet, of the cheapest capacity that it takes."""
        nominated = {each.pod for each in self.claims.values() if not each.initialized}
        free = self._free_nodes()
        for pod in self.servers():
            uid = pod["metadata"]["uid"]
            if node_of(pod) or uid in nominated:
                continue
            if any(
                self._fits(pod, self.claims[name].kind, self.claims[name].zone) for name in free
            ):
                free.pop()
                continue
            found = self._cheapest(pod)
            if found is not None:
                self._launch(*found, pod=uid)

    def _free_nodes(self) -> list[str]:
        used = {node_of(pod) for pod in self.servers()}
        return [
            each["metadata"]["name"]
            for each in self.api.list("Node")
            if each["metadata"]["name"] not in used and not self.is_going(each)
            and self.claims[each["metadata"]["name"]].initialized
        ]  # fmt: skip

    def _cheapest(self, pod: Json) -> tuple[str, str] | None:
        """Spot before on-demand; of the zones that which has the fewest nodes."""
        for kind in ("spot", "on-demand"):
            zones = [
                zone for zone in self.market.zones
                if self.market.has(kind, zone) and self._fits(pod, kind, zone)
            ]  # fmt: skip
            if zones:
                crowd = [each.zone for each in self.claims.values()]
                return kind, min(zones, key=lambda zone: (crowd.count(zone), zone))
        return None

    def _fits(self, pod: Json, kind: str, zone: str) -> bool:
        required = (
            pod["spec"].get("affinity", {}).get("nodeAffinity", {})
            .get("requiredDuringSchedulingIgnoredDuringExecution", {})
        )  # fmt: skip
        terms = [term["matchExpressions"] for term in required.get("nodeSelectorTerms", ())]
        return match(terms, _labels(kind, zone))

    def _launch(self, kind: str, zone: str, *, pod: str, replaces: str = "") -> Claim:
        claim = Claim(f"{kind}-{len(self.ledger.claims)}", kind, zone, pod, self.clock, replaces)
        self.ledger.claims.append(claim)
        self.claims[claim.name] = claim
        self.after(self.delays.launch, lambda: self._appear(claim))
        return claim

    def _appear(self, claim: Claim) -> None:
        if not self.market.has(claim.kind, claim.zone):
            # Insufficient capacity: the claim is deleted, and another made.
            del self.claims[claim.name]
            self._roll_back(claim)
            self.look()
            return
        claim.appeared_at = self.clock
        self.held[claim.name] = set()
        taints = [
            {"key": UNREGISTERED, "effect": "NoExecute"},
            {"key": STARTUP_TAINT, "effect": "NoSchedule"},
        ]
        self.api.create(
            {
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": claim.name, "labels": _labels(claim.kind, claim.zone)},
                "spec": {"taints": taints},
                "status": {
                    "allocatable": {GPU: "1"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
        )  # fmt: skip
        self.api.create(caches.node_cache(claim.name, PinnedReady="False"))
        self.after(self.delays.register, lambda: self._untaint(claim.name, UNREGISTERED))
        self.after(self.delays.register + self.delays.verify, lambda: self._verify(claim))

    def _verify(self, claim: Claim) -> None:
        """The agent reports its pinned models, and the controller takes the startup taint away."""
        if claim.name not in self.held:
            return
        cache = caches.node_cache(claim.name, desired=(caches.report("pinned"),))
        self.api.update("NodeCache", "", claim.name, lambda d: d.update(status=cache["status"]))
        node = self.api.get("Node", "", claim.name)
        parsed = parse_node_cache(self.api.get("NodeCache", "", claim.name))
        models = [CachedModel.model_validate(_PINNED)]
        if not wanted_marks(parsed, models, node["metadata"]["labels"]).starting:
            patch = without_taint(node)
            assert patch is not None
            self.api.merge_patch("Node", claim.name, patch)
        claim.initialized = not self.api.get("Node", "", claim.name)["spec"].get("taints")
        self._proceed(claim)

    def look(self) -> None:
        """Looks again at what waits for capacity, though nothing else has changed."""
        self.api.writes.append("time passes")

    # Disruption

    def interrupt(self, name: str) -> None:
        """The cloud takes a spot node back after its notice."""
        claim = self.claims.get(name)
        if claim is None or name not in self.held or claim.ended_at is not None:
            return
        claim.ended_at = self.clock + self.delays.notice
        servers = [pod for pod in self.servers() if node_of(pod) == name]
        self.ledger.interrupted.append((self.clock, len(servers)))
        uid = self.api.get("Node", "", name)["metadata"]["uid"]
        event = {
            "kind": "Event", "metadata": {"name": f"{name}.1", "namespace": "default"}, "reason": "SpotInterrupted",
            "involvedObject": {"kind": "Node", "name": name, "uid": uid}, "source": {"component": "karpenter"},
        }  # fmt: skip
        self._events.append(event)
        self._cache.put(event)
        self._delete_node(name)
        self.after(self.delays.notice, lambda: self._end(name))

    def restart(self) -> None:
        """The controller starts again, with what the API server has."""
        self._cache = WatchCache()
        for each in (*self.api.list("Node"), *self._events):
            self._cache.put(each)
        self.look()

    def expire(self, name: str) -> None:
        """A node is deleted as it is: it expires, or somebody deletes its NodeClaim. It waits for its pods."""
        if name in self.held:
            self._delete_node(name)

    def _delete_node(self, name: str) -> None:
        def leave(node: Json) -> None:
            node["metadata"]["deletionTimestamp"] = self.now
            taints = [each for each in node["spec"].get("taints") or () if each["key"] != DISRUPTED]
            node["spec"]["taints"] = [*taints, {"key": DISRUPTED, "effect": "NoSchedule"}]

        self.api.update("Node", "", name, leave)

    def _end(self, name: str) -> None:
        """The instance is gone, and what ran on it: whoever still had requests loses them."""
        if name not in self.held:
            return
        running = [pod for pod in self.ready_servers() if node_of(pod) == name]
        busy = [
            uid for uid, (node, end) in self.draining.items() if node == name and end > self.clock
        ]
        self.ledger.lost += [(self.clock, name)] * (len(running) + len(busy))
        claim = self.claims.pop(name)
        claim.gone_at = self.clock
        self._roll_back(claim)
        self.remove_node(name)
        self.api.delete("NodeCache", "", name)

    def _evict(self) -> None:
        """The drain of nodes that are deleted: evicts what budgets let go, and ends nodes that are empty."""
        for node in self.api.list("Node"):
            name = node["metadata"]["name"]
            if "deletionTimestamp" not in node["metadata"]:
                continue
            for pod in self.api.list("Pod", NAMESPACE):
                if node_of(pod) == name and not _is_protected(pod) and may_evict(self.api, pod):
                    self.api.delete("Pod", NAMESPACE, pod["metadata"]["name"])
            left = [pod for pod in self.api.list("Pod", NAMESPACE) if node_of(pod) == name]
            busy = [
                end for where, end in self.draining.values() if where == name and end > self.clock
            ]
            if not left and not busy:
                self._end(name)

    def _consolidate(self) -> None:
        """Every minute, one node at a time: one without servers goes, and a dearer one is replaced by spot."""
        self.after(60, self._consolidate)
        nodes = {each["metadata"]["name"]: each for each in self.api.list("Node")}
        waiting = [pod for pod in self.servers() if not node_of(pod)]
        if waiting:
            self.look()
        for name in list(self._idle_since):
            if name not in nodes:
                del self._idle_since[name]
        if any(self.is_going(node) for node in nodes.values()):
            return
        for name in nodes:
            claim = self.claims[name]
            pods = [pod for pod in self.api.list("Pod", NAMESPACE) if node_of(pod) == name]
            cheaper = claim.kind != "spot" and bool(pods) and self._spot_for(pods)
            if not claim.initialized or (pods and not cheaper):
                self._idle_since.pop(name, None)
                continue
            if self.clock - self._idle_since.setdefault(name, self.clock) < self.delays.consolidate:
                continue
            if self._may_disrupt(pods):
                self._disrupt(name, pods)
                return

    def replace(self, name: str) -> None:
        """A node has drifted: it is replaced as it is, if nothing protects its pods."""
        pods = [pod for pod in self.servers() if node_of(pod) == name]
        going = any(map(self.is_going, self.api.list("Node")))
        if not going and self.claims[name].initialized and self._may_disrupt(pods):
            self._disrupt(name, pods)

    def _may_disrupt(self, pods: list[Json]) -> bool:
        return not any(_is_protected(pod) or not may_evict(self.api, pod) for pod in pods)

    def _spot_for(self, pods: list[Json]) -> bool:
        """Whether all pods of a node may run on spot nodes that can be had. Pre-warm pods are bound to theirs."""
        if any(pod["metadata"]["labels"][names.ROLE] != names.SERVER for pod in pods):
            return False
        found = [self._cheapest(pod) for pod in pods]
        return all(each is not None and each[0] == "spot" for each in found)

    def _disrupt(self, name: str, pods: list[Json]) -> None:
        taint = {"key": DISRUPTED, "effect": "NoSchedule"}
        self.api.update("Node", "", name, lambda d: d["spec"].update(taints=[taint]))
        if not pods:
            self._delete_node(name)
            return
        found = self._cheapest(pods[0])
        if found is None:
            self._untaint(name, DISRUPTED)
        else:
            self._launch(*found, pod="", replaces=name)

    def _proceed(self, claim: Claim) -> None:
        """A voluntary disruption goes on once the replacement is initialised."""
        if claim.replaces and claim.replaces in self.held:
            self._delete_node(claim.replaces)

    def _roll_back(self, claim: Claim) -> None:
        """A node whose replacement goes before it was initialised stays, unless it is deleted itself."""
        if claim.replaces not in self.held or claim.initialized:
            return
        if "deletionTimestamp" not in self.api.get("Node", "", claim.replaces)["metadata"]:
            self._untaint(claim.replaces, DISRUPTED)

    def _untaint(self, name: str, key: str) -> None:
        def change(node: Json) -> None:
            node["spec"]["taints"] = [
                each for each in node["spec"].get("taints") or () if each["key"] != key
            ]

        if name in self.held:
            self.api.update("Node", "", name, change)

    @staticmethod
    def is_going(node: Json) -> bool:
        keys = {each["key"] for each in node["spec"].get("taints") or ()}
        return "deletionTimestamp" in node["metadata"] or DISRUPTED in keys

    # Kubelets

    def run_kubelets(self) -> None:
        """Pods get ready in time: the model comes to the node once, a server then loads it."""
        for pod in self.api.list("Pod", NAMESPACE):
            node, image = node_of(pod), _image(pod)
            if node is None or is_ready(pod) or node not in self.held:
                continue
            uid = pod["metadata"]["uid"]
            if uid not in self._ready_at:
                there = self._fetched_at.setdefault(
                    (node, str(image)), self.clock + self.delays.fetch
                )
                load = (
                    self.delays.load if pod["metadata"]["labels"][names.ROLE] == names.SERVER else 0
                )
                self._ready_at[uid] = max(self.clock, there) + load
                self.after(self._ready_at[uid] - self.clock, self.look)
            if self._ready_at[uid] <= self.clock:
                self.held[node].add(str(image))
                self._status(pod, {
                    "phase": "Running",
                    "conditions": [
                        {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}
                    ],
                    "containerStatuses": [
                        {"name": "any", "ready": True, "started": True, "state": {"running": {}}}
                    ],
                })  # fmt: skip

    def _watch(self, verb: str, document: Json) -> None:
        """Events reach the controller; a deleted server finishes its requests, as its preStop hook waits for."""
        if document["kind"] == "Node":
            (self._cache.drop if verb == "DELETED" else self._cache.put)(document)
        if verb != "DELETED" or document["kind"] != "Pod" or not is_ready(document):
            return
        uid, node = document["metadata"]["uid"], str(node_of(document))
        if document["metadata"]["labels"][names.ROLE] == names.SERVER and node in self.claims:
            self.draining[uid] = (node, self.clock + self.delays.request)
            self.after(self.delays.request, self.look)


def _labels(kind: str, zone: str) -> dict[str, str]:
    return {CAPACITY_TYPE: kind, ZONE: zone, **_L4}


def _is_protected(pod: Json) -> bool:
    return bool(pod["metadata"].get("annotations", {}).get(DO_NOT_DISRUPT) == "true")
