"""`strategy: external`: what Argo Rollouts drives, as the documentation's example has it, is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workspace import samples
from tests.workspace.controller.simulation import NAMESPACE, Cluster, is_ready
from workspace.controller.observation.objects import has_labels
from workspace.controller.observation.observed import GATEWAY_GROUP
from workspace.document import workspace_of
from workspace.render import names

Json = dict[str, Any]
PAGE = Path(__file__).parents[3] / "docs" / "rollouts.md"
HASH = "rollouts-pod-template-hash"
V2 = "registry.example/team/llama:v2"


def example() -> tuple[Json, Json]:
    """The Workspace and the Rollout of the documentation."""
    section = PAGE.read_text().partition("## By Argo Rollouts\n")[2].partition("```yaml\n")[2]
    workspace, rollout = yaml.safe_load_all(section.partition("```\n")[0])
    return workspace, rollout


class ArgoRollouts:
    """What Argo Rollouts does to a cluster, by its Rollout: servers, selectors and weights are its own."""

    def __init__(self, cluster: Cluster, rollout: Json) -> None:
        self._cluster = cluster
        self._spec = rollout["spec"]
        self._canary = self._spec["strategy"]["canary"]

    def start(self, number: int, count: int) -> None:
        """Servers of the pod template that the Deployment has now."""
        reference = self._spec["workloadRef"]
        workload = self._cluster.api.get(reference["kind"], NAMESPACE, reference["name"])
        template = workload["spec"]["template"]
        assert has_labels({"metadata": template["metadata"]}, self._spec["selector"]["matchLabels"])
        for each in range(count):
            labels = {**template["metadata"]["labels"], HASH: str(number)}
            self._cluster.api.create(
                {
                    "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
                    "metadata": {"name": f"argo-{number}-{each}", "namespace": NAMESPACE, "labels": labels},
                }
            )  # fmt: skip

    def scale_workload(self, replicas: int) -> None:
        self._update("Deployment", self._spec["workloadRef"]["name"], replicas=replicas)

    def select(self, service: str, number: int) -> None:
        name = self._canary[service]
        selector = self._cluster.api.get("Service", NAMESPACE, name)["spec"]["selector"]
        self._update("Service", name, selector={**selector, HASH: str(number)})

    def set_weight(self, percent: int) -> None:
        plugin = self._canary["trafficRouting"]["plugins"]["argoproj-labs/gatewayAPI"]
        weights = {
            self._canary["stableService"]: 100 - percent, self._canary["canaryService"]: percent
        }  # fmt: skip
        rules = self._cluster.api.get("HTTPRoute", NAMESPACE, plugin["httpRoute"])["spec"]["rules"]
        for backend in rules[0]["backendRefs"]:
            backend["weight"] = weights[backend["name"]]
        self._update("HTTPRoute", plugin["httpRoute"], rules=rules)

    def end(self, number: int) -> None:
        for pod in self._cluster.api.list("Pod", NAMESPACE, {HASH: str(number)}):
            self._cluster.api.delete("Pod", NAMESPACE, pod["metadata"]["name"])

    def _update(self, kind: str, name: str, **fields: Any) -> None:
        self._cluster.api.update(
            kind, NAMESPACE, name, lambda document: document["spec"].update(fields), manager="argo-rollouts"
        )  # fmt: skip


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster(gateway_groups=frozenset({GATEWAY_GROUP}))
    for number in range(6):
        made.add_node(f"n{number}")
    return made


def test_argo_rollouts_drives_and_nothing_of_its_is_undone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, rollout = example()
    name = workspace["metadata"]["name"]
    monkeypatch.setattr("tests.workspace.controller.simulation.NAME", name)
    workspace_of(workspace)
    cluster.api.create(workspace)
    cluster.settle()
    deployment = cluster.api.get("Deployment", NAMESPACE, name)
    assert deployment["spec"]["replicas"] == workspace["spec"]["replicas"]
    argo = ArgoRollouts(cluster, rollout)
    # It takes over.
    argo.start(1, 2)
    argo.select("stableService", 1)
    argo.select("canaryService", 1)
    cluster.settle()
    argo.scale_workload(0)
    cluster.settle()
    assert cluster.api.get("Deployment", NAMESPACE, name)["spec"]["replicas"] == 0
    assert is_served(cluster, name, ready=2)
    # A new version: first its model is fetched, then its template is there for Argo Rollouts.
    cluster.api.update(
        "Workspace", NAMESPACE, name, lambda document: document["spec"].update(model={"image": V2})
    )
    cluster.settle()
    assert count_of(cluster, name) == 2
    template = cluster.api.get("Deployment", NAMESPACE, name)["spec"]["template"]
    assert template["metadata"]["annotations"][names.IMAGE] == samples.pinned(V2).image
    argo.start(2, 1)
    argo.select("canaryService", 2)
    argo.set_weight(10)
    cluster.settle()
    rules = cluster.api.get("HTTPRoute", NAMESPACE, name)["spec"]["rules"]
    assert [each["weight"] for each in rules[0]["backendRefs"]] == [90, 10]
    for service, number in ((name, "1"), (names.candidate(name), "2")):
        selector = cluster.api.get("Service", NAMESPACE, service)["spec"]["selector"]
        assert selector[HASH] == number
        assert [
            each["metadata"]["labels"][HASH]
            for each in cluster.api.list("Pod", NAMESPACE, selector)
        ]
    assert cluster.api.get("Deployment", NAMESPACE, name)["spec"]["replicas"] == 0
    argo.end(1)
    argo.set_weight(100)
    cluster.settle()
    assert is_served(cluster, name, ready=1)


def count_of(cluster: Cluster, name: str) -> int:
    pods = cluster.api.list("Pod", NAMESPACE, names.selector(name, names.SERVER))
    return sum(map(is_ready, pods))


def is_served(cluster: Cluster, name: str, *, ready: int) -> bool:
    status = cluster.api.get("Workspace", NAMESPACE, name)["status"]
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    return status["readyReplicas"] == ready and set(conditions.values()) == {"True"}
