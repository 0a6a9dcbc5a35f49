"""A small cluster around the fake API: a registry, a scheduler with GPUs, kubelets that fetch, a Deployment controller.

Each part does one step when told to, so a test decides how they interleave.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from cache_agent.api.kube_objects import timestamp
from modelimage.errors import Unreachable, WeightyardError
from tests.workspace import samples
from tests.workspace.controller import caches, gateways
from tests.workspace.controller.fakeapi import Conflict, FakeApi, Missing
from tests.workspace.controller.leaderworkersets import joined, run_leader_worker_sets
from workspace.analysis import AnalysisResult
from workspace.controller.changes import OWN_KINDS
from workspace.controller.observation.nodes import KubeNode
from workspace.controller.observation.objects import is_ready
from workspace.controller.observation.observed import (
    LWS_GROUP,
    Action,
    Annotate,
    Apply,
    Decision,
    Observed,
)
from workspace.controller.observation.revisions import has_version
from workspace.controller.reconcile import reconcile
from workspace.controller.servers.pod_marks import COST
from workspace.document import workspace_of
from workspace.node_terms import match
from workspace.probes.verdicts import ProbeResult
from workspace.render import names
from workspace.render.release import ResolvedImages
from workspace.render.routing import SystemSettings
from workspace.schema import Workspace
from workspace.sources import image_of, not_built

Json = dict[str, Any]
NAMESPACE, NAME = "team-a", "chat"
GPU = "nvidia.com/gpu"
INSUFFICIENT = f"0/1 nodes are available: 1 Insufficient {GPU}."  # in the scheduler's words


class Crash(Exception):
    """The controller's process ends between two calls."""


@dataclass
class Cluster:
    """`held` is what each node's agent has, by image; `registry_up` false makes the registry unreachable."""

    api: FakeApi = field(default_factory=FakeApi)
    held: dict[str, set[str]] = field(default_factory=dict)
    registry_up: bool = True
    tags: dict[str, str] = field(default_factory=dict)
    wanted: int | None = None
    unread: WeightyardError | None = None
    labels_nodes: bool = False
    built: set[str] = field(default_factory=set)
    builds_fail: bool = False
    environment: SystemSettings = field(default_factory=SystemSettings)
    asked: int = 0
    now: str = "2026-01-01T00:00:00Z"
    analysis: AnalysisResult | None = None
    gateway_groups: frozenset[str] = frozenset()
    has_groups: bool = True  # whether LeaderWorkerSet is installed
    idle: str = ""
    refusal: str = ""  # what Gateways say of routes that they don't take
    probes: ProbeResult | None = None
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    # What people do

    def create_workspace(self, **spec: Any) -> None:
        document = samples.document(NAME, namespace=NAMESPACE, **spec)
        self.api.create(document)

    def change_spec(self, **parts: Any) -> None:
        def change(document: Json) -> None:
            for name, value in parts.items():
                document["spec"].pop(name, None)
                if value is not None:
                    document["spec"][name] = value

        self.api.update("Workspace", NAMESPACE, NAME, change)

    def add_node(self, name: str, *, gpus: int = 1) -> None:
        self.held.setdefault(name, set())
        self.api.create(
            {
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {}}, "spec": {},
                "status": {
                    "allocatable": {GPU: str(gpus)},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
        )  # fmt: skip

    def annotate(self, **annotations: str | None) -> None:
        """Sets annotations `rollout.weightyard.dev/NAME` of the Workspace, or removes them."""

        def change(document: Json) -> None:
            found = document["metadata"].setdefault("annotations", {})
            for name, value in annotations.items():
                found.pop(f"rollout.{names.DOMAIN}/{name}", None)
                if value is not None:
                    found[f"rollout.{names.DOMAIN}/{name}"] = value

        self.api.update("Workspace", NAMESPACE, NAME, change)

    def later(self, seconds: int) -> None:
        """Lets time pass."""
        self.now = timestamp(datetime.fromisoformat(self.now).timestamp() + seconds)

    def remove_node(self, name: str) -> None:
        self.api.delete("Node", "", name)
        self.held.pop(name)
        for pod in self.api.list("Pod"):
            if pod["spec"].get("nodeName") == name:
                self.api.delete("Pod", NAMESPACE, pod["metadata"]["name"])

    # The controller

    def observe(self) -> Observed:
        objects = [
            each
            for kind in (*OWN_KINDS, "EndpointSlice")
            for each in self.api.list(kind, NAMESPACE)
            if each["metadata"].get("labels", {}).get(names.WORKSPACE) == NAME
            or each["metadata"]["name"]
            in (NAME, names.activator(NAME), names.server_service(NAME), names.candidate(NAME))
        ]
        return Observed(
            document=self.api.get("Workspace", NAMESPACE, NAME),
            objects=tuple(objects),
            nodes=self.nodes(),
            now=self.now,
            analysis=self.analysis,
            probes=self.probes,
            environment=self.environment,
            wanted=self.wanted,
            unread=self.unread,
            groups=frozenset(
                {"keda.sh", *self.gateway_groups, *([LWS_GROUP] if self.has_groups else ())}
            ),
            idle=self.idle,
        )

    def nodes(self) -> tuple[KubeNode, ...]:
        """The nodes as the controller knows them."""
        return tuple(map(KubeNode.from_document, self.api.list("Node")))

    def decide(self) -> Decision:
        observed = self.observe()
        decision = reconcile(observed)
        if decision.ask_registry:
            self.asked += 1
            workspace = workspace_of(observed.document)
            observed = replace(observed, resolved=self._resolve(workspace))
            decision = reconcile(observed)
        return decision

    def reconcile(
        self, *, crash_after: int | None = None, conflict_at: int | None = None
    ) -> Decision:
        """One pass; with faults, only a part of it gets carried out."""
        decision = self.decide()
        steps: list[Action | Json] = [*decision.actions]
        if decision.status is not None:
            steps.append(decision.status)
        for number, step in enumerate(steps):
            if number == crash_after:
                raise Crash
            if number == conflict_at:
                raise Conflict("try again")
            self._carry_out(step)
        return decision

    def _carry_out(self, step: Action | Json) -> None:
        if isinstance(step, dict):
            document = {**samples.document(NAME, namespace=NAMESPACE), "status": step}
            self.api.apply(document, manager=names.MANAGER, status=True)
        elif isinstance(step, Apply):
            self.api.apply(step.document, manager=names.MANAGER)
        elif isinstance(step, Annotate):
            patch = {"metadata": {"annotations": dict(step.annotations)}}
            with suppress(Missing):
                self.api.merge_patch("Pod", step.reference.name, patch, namespace=NAMESPACE)
        else:
            try:
                self.api.delete(step.reference.kind, NAMESPACE, step.reference.name, uid=step.uid)
            except Missing:
                return  # went by itself

    def _resolve(self, workspace: Workspace) -> ResolvedImages | WeightyardError:
        if not self.registry_up:
            return Unreachable("the registry doesn't answer", hint="Wait.")
        try:
            image = image_of(workspace)
        except WeightyardError as error:
            return error
        if workspace.spec.model.image is None and image not in self.built:
            return not_built(workspace, image)
        return samples.resolved(workspace, samples.pinned(self.tags.get(image, image)))

    # The rest of the cluster

    def servers(self) -> list[Json]:
        return self.api.list("Pod", NAMESPACE, names.selector(NAME, names.SERVER))

    def ready_servers(self) -> list[Json]:
        return [pod for pod in self.servers() if is_ready(pod)]

    def step(self) -> None:
        """One step of everything but the controller."""
        self.run_jobs()
        self.run_deployments()
        run_leader_worker_sets(self.api, NAMESPACE)
        self.schedule()
        self.run_kubelets()
        if self.labels_nodes:
            self.label_nodes()
        self.run_agents()
        gateways.run_endpoints(self.api)
        gateways.run_gateways(self.api, refusal=self.refusal)

    def run_jobs(self) -> None:
        """Each build ends in one step: well, and then the registry has its image, or not."""
        for job in self.api.list("Job", NAMESPACE):
            if job.get("status"):
                continue
            words = job["spec"]["template"]["spec"]["containers"][0]["args"]
            if not self.builds_fail:
                self.built.add(words[words.index("--to") + 1])
            kind = "Failed" if self.builds_fail else "Complete"
            status = {"conditions": [{"type": kind, "status": "True", "message": "as told"}]}
            self.api.update("Job", NAMESPACE, job["metadata"]["name"], setting(status=status))

    def run_deployments(self) -> None:
        """Rolling updates with one extra pod and none missing, one step a call."""
        names_left = {each["metadata"]["name"] for each in self.api.list("Deployment", NAMESPACE)}
        for pod in self.api.list("Pod", NAMESPACE):
            owner = pod["metadata"].get("annotations", {}).get("deployment")
            if owner is not None and owner not in names_left:
                self.api.delete("Pod", NAMESPACE, pod["metadata"]["name"])
        for deployment in self.api.list("Deployment", NAMESPACE):
            self._run_deployment(deployment)

    def _run_deployment(self, deployment: Json) -> None:
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        hashed = str(
            hash(repr(spec["template"]["spec"]) + repr(spec["template"]["metadata"]["labels"]))
        )
        pods = [
            pod for pod in self.api.list("Pod", NAMESPACE)
            if pod["metadata"].get("annotations", {}).get("deployment") == name
        ]  # fmt: skip
        new = [pod for pod in pods if pod["metadata"]["annotations"]["template"] == hashed]
        old = [pod for pod in pods if pod not in new]
        count = spec["replicas"]
        if len(new) < count and len(pods) < count + (1 if old else 0):
            self._start_pod(name, spec["template"], hashed)
        elif len(new) > count:
            self.api.delete("Pod", NAMESPACE, min(new, key=_deletion_rank)["metadata"]["name"])
        else:
            ready = sum(map(is_ready, pods))
            for pod in old:
                if not is_ready(pod) or ready > count or count == 0:
                    self.api.delete("Pod", NAMESPACE, pod["metadata"]["name"])
                    break

    def _start_pod(self, deployment: str, template: Json, hashed: str) -> None:
        self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{deployment}-{next(self._numbers)}",
                    "namespace": NAMESPACE,
                    "labels": template["metadata"]["labels"],
                    "annotations": {"deployment": deployment, "template": hashed},
                },
                "spec": template["spec"],
            }
        )

    def schedule(self) -> None:
        """Give each waiting pod a node with room, warm ones first."""
        for pod in self.api.list("Pod", NAMESPACE):
            if pod["spec"].get("nodeName"):
                continue
            found = self._place(pod)
            if found is None:
                self._status(pod, {"phase": "Pending", "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": INSUFFICIENT}
                ]})  # fmt: skip
            else:

                def bind(document: Json, node: str = found) -> None:
                    document["spec"]["nodeName"] = node
                    document["status"] = {"phase": "Pending", "conditions": [
                        {"type": "PodScheduled", "status": "True"}
                    ]}  # fmt: skip

                self.api.update(
                    "Pod", NAMESPACE, pod["metadata"]["name"], bind, manager="scheduler"
                )

    def _place(self, pod: Json) -> str | None:
        wanted = _gpus(pod)
        terms = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
        required = terms.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get(
            "nodeSelectorTerms", ()
        )
        possible = []
        for node in self.api.list("Node"):
            if node["spec"].get("unschedulable"):
                continue
            name, labels = node["metadata"]["name"], node["metadata"].get("labels") or {}
            used = sum(_gpus(p) for p in self.api.list("Pod") if p["spec"].get("nodeName") == name)
            fits = not required or any(_selects(term, name, labels) for term in required)
            fits = fits and self.admits(pod, node)
            if fits and used + wanted <= int(node["status"]["allocatable"][GPU]):
                possible.append((_image(pod) not in self.held[name], -_liking(terms, labels), name))
        return min(possible)[-1] if possible else None

    def admits(self, pod: Json, node: Json) -> bool:
        """Whether a node's taints let a pod in. These nodes have none."""
        return not node["spec"].get("taints")

    def run_kubelets(self) -> None:
        """Fetch, then mount and start: a pod's first step on a cold node brings the model, its second starts it."""
        pods = self.api.list("Pod", NAMESPACE)
        for pod in pods:
            node = pod["spec"].get("nodeName")
            if node is None or node not in self.held or not joined(pod, pods):
                continue
            image = _image(pod)
            if image and image not in self.held[node]:
                self.held[node].add(image)
            elif not is_ready(pod):
                self._status(pod, {
                    "phase": "Running",
                    "conditions": [
                        {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}
                    ],
                    "containerStatuses": [{"name": "any", "ready": True, "state": {"running": {}}}],
                })  # fmt: skip

    def run_agents(self) -> None:
        """Where something is wanted, agents fetch it, report, and hold what was wanted before."""
        models = self.api.list("CachedModel")
        for node in self.api.list("Node") if models else ():
            name = node["metadata"]["name"]
            wanted = {each["metadata"]["name"]: each for each in models}
            document = caches.node_cache(
                name,
                desired=tuple(
                    caches.report(
                        each, generation=model["metadata"]["generation"],
                        bytesDone=1, bytesTotal=1, modelKey=str(caches.key_of(model["spec"]["image"])),
                    )
                    for each, model in wanted.items()
                ),
                models=tuple(caches.held(each["spec"]["image"]) for each in models),
            )  # fmt: skip
            if ("NodeCache", "", name) not in self.api.objects:
                self.api.create(document)
            self.api.update("NodeCache", "", name, setting(status=document["status"]))

    def label_nodes(self) -> None:
        """What the cache's own controller does: a label for each model that a node holds."""
        for node in self.api.list("Node"):
            name = node["metadata"]["name"]
            known = {
                each["data"]["image"]: each["data"]["key"].partition(":")[2][:12]
                for each in self.api.list("ControllerRevision")
                if has_version(each)
            }
            labels = {
                f"cache.weightyard.dev/m.{key}": "ready"
                for image, key in known.items() if image in self.held[name]
            }  # fmt: skip
            self.api.update("Node", "", name, labelling(labels))

    def _status(self, pod: Json, status: Json) -> None:
        name = pod["metadata"]["name"]
        self.api.update("Pod", NAMESPACE, name, setting(status=status), manager="kubelet")

    def settle(self, *, rounds: int = 80) -> int:
        """Let everything run until nothing changes any more; returns how many rounds that took."""
        for number in range(rounds):
            before = len(self.api.writes)
            self.reconcile()
            self.step()
            if len(self.api.writes) == before:
                return number
        raise AssertionError(f"no fixed point in {rounds} rounds; last: {self.api.writes[-6:]}")


def _selects(term: Json, name: str, labels: Json) -> bool:
    """Whether a node selector term selects a node."""
    named = all(name in each["values"] for each in term.get("matchFields", ()))
    return named and match([term.get("matchExpressions", [])], labels)


def _liking(affinity: Json, labels: Json) -> int:
    """How much a pod prefers a node."""
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution", ())
    return sum(
        each["weight"]
        for each in preferred
        if match([each["preference"]["matchExpressions"]], labels)
    )


def _deletion_rank(pod: Json) -> tuple[bool, bool, int, int]:
    """A ReplicaSet's order of what to delete first (k8s.io/kubernetes: ActivePodsWithRanks); the youngest of equals."""
    cost = int(pod["metadata"].get("annotations", {}).get(COST, "0"))
    age = int(pod["metadata"]["name"].rpartition("-")[2])
    return bool(pod["spec"].get("nodeName")), is_ready(pod), cost, -age


def _gpus(pod: Json) -> int:
    return sum(
        int(c.get("resources", {}).get("requests", {}).get(GPU, 0))
        for c in pod["spec"]["containers"]
    )


def _image(pod: Json) -> str | None:
    volumes = pod["spec"].get("volumes", ())
    return next(
        (v["csi"]["volumeAttributes"]["image"] for v in volumes if v["name"] == "model"), None
    )


def setting(**fields: Any) -> Callable[[Json], None]:
    """A change that sets fields of a document."""
    return lambda document: document.update(fields)


def labelling(labels: dict[str, str]) -> Callable[[Json], None]:
    """A change that replaces a document's labels."""
    return lambda document: document["metadata"].update(labels=labels)
