"""Whatever happens, and however often the controller dies, all comes to rest at what was asked for."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from modelimage.errors import InvalidInput
from tests.examples import examples
from tests.workspace import samples
from tests.workspace.controller.fakeapi import Conflict, Missing
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster, Crash
from workspace.controller.changes import OWN_KINDS
from workspace.controller.observation import revisions
from workspace.controller.observation.objects import asked_of
from workspace.document import workspace_of
from workspace.render import names

Json = dict[str, Any]

MODELS = [
    {"image": f"registry.example/team/llama:v{n}", "variant": v}
    for n in (1, 2)
    for v in ("auto", "int4")
]
MODELS.append({"hub": "org/llama", "build": {"to": "registry.example/team/llama"}})
SCALES = [{"min": 0, "max": 2}, {"min": 1, "max": 3}, {"min": 1, "max": 2, "by": "hpa"}, None]
TENANCIES = [
    None,
    {"quota": {"pods": "0.5k", "requests.memory": "1024Mi"}},
    {"limits": {"cpu": "0.5"}},
]
RUNTIMES = [
    None, {"args": ["--seed", "1"]}, {"port": 9000, "env": [{"name": "A", "value": ""}]},
    {"adapters": [{"name": "sql", "image": "registry.example/a/sql:v1"}]},
]  # fmt: skip
RESOURCES = [
    {"gpu": "L4"},
    {"gpu": "L4", "memory": "2048Mi", "cpu": "0.5"},
    {"gpu": "H100", "gpus": 2},
    {"gpu": "L4", "provisioning": {"capacity": {"onDemandMinimum": 1}}},
]
SIGNS = [
    "karpenter.sh/disrupted", "aws-node-termination-handler/spot-itn", "node.kubernetes.io/disk-pressure", None,
]  # fmt: skip


def scribble(document: Json) -> None:
    """An edit by somebody else, to things that matter."""
    spec = document.get("spec") or {}
    if document["kind"] == "Deployment":
        spec["replicas"] = 7
        spec["template"]["spec"]["containers"][0]["args"] = ["--oops"]
    elif document["kind"] == "LeaderWorkerSet":
        spec["replicas"] = 7
        for template in ("leaderTemplate", "workerTemplate"):
            (container,) = spec["leaderWorkerTemplate"][template]["spec"]["containers"]
            container["args"] = ["--oops"]
    elif document["kind"] == "Service":
        spec["selector"] = {"app": "stolen"}
    elif document["kind"] == "HTTPRoute":
        spec["rules"][0]["backendRefs"][0]["weight"] = 7
        spec["rules"].insert(0, {"backendRefs": [{"name": "theirs", "port": 80}]})
        spec["rules"] = spec["rules"][:3]
    elif document["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
        spec.clear()
        spec["podSelector" if document["kind"] == "NetworkPolicy" else "selector"] = {}
    document["metadata"]["labels"] = {
        **document["metadata"].get("labels", {}), "theirs": "kept", "app.kubernetes.io/part-of": "other",
    }  # fmt: skip


class Controller(RuleBasedStateMachine):
    """A cluster where things happen, and a controller that crashes and meets conflicts."""

    nodes = Bundle("nodes")

    @initialize(labels=st.booleans())
    def start(self, labels: bool) -> None:
        self.cluster = Cluster(labels_nodes=labels)
        self.cluster.create_workspace(replicas=1)
        self.spare = iter(f"n{n}" for n in range(100))

    @rule(target=nodes, gpus=st.sampled_from([1, 2, 4]))
    def add_node(self, gpus: int) -> str:
        name = next(self.spare)
        self.cluster.add_node(name, gpus=gpus)
        return name

    @rule(name=nodes)
    def lose_node(self, name: str) -> None:
        if name in self.cluster.held:
            self.cluster.remove_node(name)

    @rule(name=nodes, cordoned=st.booleans())
    def cordon(self, name: str, cordoned: bool) -> None:
        if name in self.cluster.held:
            self.cluster.api.update(
                "Node", "", name, lambda d: d["spec"].update(unschedulable=cordoned)
            )

    @rule(name=nodes, key=st.sampled_from(SIGNS))
    def sign(self, name: str, key: str | None) -> None:
        taints = [{"key": key, "effect": "NoSchedule"}] if key else []
        if name in self.cluster.held:
            self.cluster.api.update("Node", "", name, lambda d: d["spec"].update(taints=taints))

    @rule(model=st.sampled_from(MODELS))
    def change_model(self, model: Json) -> None:
        self.edit(model=model)

    @rule(runtime=st.sampled_from(RUNTIMES), tenancy=st.sampled_from(TENANCIES))
    def change_runtime(self, runtime: Json | None, tenancy: Json | None) -> None:
        self.edit(runtime=runtime, tenancy=tenancy)

    @rule(
        resources=st.sampled_from(RESOURCES), placement=st.sampled_from(["any", "preferred", None])
    )
    def change_resources(self, resources: Json, placement: str | None) -> None:
        self.edit(resources=resources, placement=placement)

    @rule(scale=st.sampled_from(SCALES), replicas=st.integers(0, 3))
    def change_count(self, scale: Json | None, replicas: int) -> None:
        self.edit(scale=scale, replicas=None if scale else replicas)

    def edit(self, **parts: Any) -> None:
        """Changes the spec, unless an API server refuses what it then is, as a floor beside another autoscaler is."""
        document = self.cluster.api.get("Workspace", NAMESPACE, NAME)
        spec = {k: v for k, v in {**document["spec"], **parts}.items() if v is not None}
        with suppress(InvalidInput):
            workspace_of({**document, "spec": spec})
            self.cluster.change_spec(**parts)

    @rule(wanted=st.one_of(st.none(), st.integers(0, 4)))
    def want(self, wanted: int | None) -> None:
        self.cluster.wanted = wanted

    @rule(up=st.booleans())
    def registry(self, up: bool) -> None:
        self.cluster.registry_up = up

    @rule(data=st.data())
    def edit_a_child(self, data: st.DataObject) -> None:
        found = self.children()
        if found:
            each = data.draw(st.sampled_from(found))
            self.cluster.api.update(each["kind"], NAMESPACE, each["metadata"]["name"], scribble)

    @rule(data=st.data())
    def delete_a_child(self, data: st.DataObject) -> None:
        found = self.children() + self.cluster.servers()
        if found:
            each = data.draw(st.sampled_from(found))
            self.cluster.api.delete(each["kind"], NAMESPACE, each["metadata"]["name"])

    @rule()
    def step(self) -> None:
        self.cluster.step()

    @rule(part=st.sampled_from(["run_jobs", "run_deployments", "schedule", "run_kubelets"]))
    def step_of_one_part(self, part: str) -> None:
        getattr(self.cluster, part)()

    @rule(
        crash_after=st.one_of(st.none(), st.integers(0, 8)),
        conflict_at=st.one_of(st.none(), st.integers(0, 8)),
    )
    def reconcile(self, crash_after: int | None, conflict_at: int | None) -> None:
        with suppress(Crash, Conflict, Missing):
            self.cluster.reconcile(crash_after=crash_after, conflict_at=conflict_at)

    @precondition(lambda self: hasattr(self, "cluster"))
    @rule()
    def comes_to_rest(self) -> None:
        """The fixed point is reached, holds what was asked for, and writes nothing more."""
        self.settle()
        before = list(self.cluster.api.writes)
        decision = self.cluster.reconcile()
        assert decision.actions == ()
        assert decision.status is None
        assert self.cluster.api.writes == before
        self.check_what_was_asked_for()

    def settle(self) -> None:
        """Until nothing changes any more."""
        self.cluster.settle()

    def teardown(self) -> None:
        """Every run ends at the fixed point, wherever it was."""
        if hasattr(self, "cluster"):
            self.comes_to_rest()

    def check_what_was_asked_for(self) -> None:
        api = self.cluster.api
        document = api.get("Workspace", NAMESPACE, NAME)
        conditions = {each["type"]: each for each in document["status"]["conditions"]}
        assert set(conditions) - {"Routed"} == {
            "ModelResolved", "Cached", "Scheduled", "Available", "Ready",
        }  # fmt: skip
        assert all(each["message"] for each in conditions.values())
        assert document["status"]["observedGeneration"] == document["metadata"]["generation"]
        workspace = workspace_of(document)
        if conditions["ModelResolved"]["status"] != "True":
            return
        deployment = api.get("Deployment", NAMESPACE, NAME)
        version = deployment["spec"]["template"]["metadata"]["labels"][names.REVISION]
        if conditions["Ready"]["status"] == "True":
            assert revisions.revision_name(workspace).endswith(version)
            running = self.cluster.ready_servers()
            sizes = [each["spec"]["replicas"] for each in self.own_deployments()]
            assert len(running) == sum(sizes)
            assert {pod["metadata"]["labels"][names.REVISION] for pod in running} <= {version}
            assert "--oops" not in str(deployment["spec"])
        if document["spec"].get("scale") is None and conditions["Cached"]["status"] == "True":
            asked = asked_of(self.own_deployments(), names.with_on_demand(NAME))
            assert asked == document["spec"].get("replicas", 1)

    def own_deployments(self) -> list[Json]:
        found = self.cluster.api.list("Deployment", NAMESPACE)
        return [each for each in found if each["metadata"]["name"] in names.with_on_demand(NAME)]

    def children(self) -> list[Json]:
        return [
            each
            for kind in OWN_KINDS
            if kind != "Pod"
            for each in self.cluster.api.list(kind, NAMESPACE)
            if kind != "ControllerRevision" or revisions.has_version(each)
        ]

    @invariant()
    def nothing_of_ours_lacks_an_owner(self) -> None:
        if not hasattr(self, "cluster"):
            return
        uid = self.cluster.api.get("Workspace", NAMESPACE, NAME)["metadata"]["uid"]
        for each in self.children():
            assert each["metadata"]["ownerReferences"][0]["uid"] == uid


TestFixedPoint = Controller.TestCase
TestFixedPoint.settings = settings(max_examples=examples(40), stateful_step_count=30)


def test_the_machine_reaches_ready() -> None:
    """The property is not empty: an ordinary run does get ready."""
    cluster = Cluster()
    cluster.add_node("n1", gpus=2)
    cluster.create_workspace(model=MODELS[0], replicas=2, resources={"gpu": "L4"})
    cluster.settle()
    conditions = cluster.api.get("Workspace", NAMESPACE, NAME)["status"]["conditions"]
    assert {each["type"]: each["status"] for each in conditions}["Ready"] == "True"
    assert samples.pinned(MODELS[0]["image"]).image in cluster.held["n1"]
