"""Leaving a cluster: refused while pods use models; otherwise the controller ends and no node keeps a mark."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cache_agent.api.shared_names import STARTUP_TAINT
from modelimage.errors import InUse, TimedOut
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.rbac import Rights
from weightyard.cli import main
from weightyard.commands import cleanup as command
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.observation.node_condition import MANAGER, NodeCondition, to_apply
from workspace.controller.uninstall import Installation, Removed, leave, users

Json = dict[str, Any]
SYSTEM = "weightyard"
CONTROLLER = "weightyard-controller"
LABELS = {"app.kubernetes.io/component": "controller"}
MARK = "cache.weightyard.dev/m.0123456789ab"
RELEASE = Installation(SYSTEM, CONTROLLER)


def pod(
    name: str, *, namespace: str = "team", labels: Json | None = None, driver: str = ""
) -> Json:
    volumes = [{"name": "model", "csi": {"driver": driver}}] if driver else []
    spec = {"containers": [{"name": "a", "image": "a"}], "volumes": volumes}
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def node(name: str, *, marked: bool) -> Json:
    taints = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
    metadata: Json = {"name": name, "labels": {"zone": "a"}}
    if marked:
        metadata["labels"] |= {MARK: "ready"}
        metadata["annotations"] = {MARK: "sha256:… int4", "other": "1"}
        taints.append({"key": STARTUP_TAINT, "effect": "NoSchedule"})
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}}


@pytest.fixture
def api() -> FakeApi:
    return marked_cluster()


def marked_cluster() -> FakeApi:
    """Two marked nodes, one of them with the condition, one not, and a controller with one pod."""
    made = FakeApi()
    for each in (node("n1", marked=True), node("n2", marked=False), node("n3", marked=True)):
        made.create(each)
    told = NodeCondition("True", "Held", "")
    made.apply(to_apply("n1", told, None, "now"), manager=MANAGER, status=True)
    template = {
        "metadata": {"labels": LABELS},
        "spec": {"containers": [{"name": "c", "image": "c"}]},
    }
    made.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": CONTROLLER, "namespace": SYSTEM},
            "spec": {"replicas": 2, "selector": {"matchLabels": LABELS}, "template": template},
        }
    )
    made.create(pod("controller-1", namespace=SYSTEM, labels=LABELS))
    return made  # fmt: skip


def run(
    api: FakeApi, release: Installation, *, while_waiting: Callable[[], None], allows: Rights | None = None
) -> Removed:  # fmt: skip
    """Leave the cluster; each wait lets it go on. `allows` are the caller's rights; all, unless given."""

    async def sleep(_: float) -> None:
        while_waiting()

    async def body() -> Removed:
        async with HttpApi(api, keda=False) as served, served.client() as client:
            if allows is not None:
                served.callers.allows = allows
            return await leave(KubernetesApi(client), release, sleep=sleep)

    return asyncio.run(body())


def end_controller(api: FakeApi) -> Callable[[], None]:
    """The Deployment's controller: no replicas, no pod."""

    def step() -> None:
        if api.get("Deployment", SYSTEM, CONTROLLER)["spec"]["replicas"] == 0:
            api.delete("Pod", SYSTEM, "controller-1", uid=None)

    return step


def marks(api: FakeApi) -> list[str]:
    """Whatever nodes carry of ours."""
    found = []
    for each in api.list("Node"):
        metadata = each["metadata"]
        named = [*(metadata.get("labels") or {}), *(metadata.get("annotations") or {})]
        named += [taint["key"] for taint in each["spec"].get("taints") or ()]
        named += [told["type"] for told in (each.get("status") or {}).get("conditions") or ()]
        found += [name for name in named if name.startswith("cache.weightyard.dev/")]
    return found


def test_nodes_lose_every_mark_and_nothing_else(api: FakeApi) -> None:
    left = run(api, RELEASE, while_waiting=end_controller(api))
    assert left == Removed(("n1", "n3"), ())
    assert marks(api) == []
    first = api.get("Node", "", "n1")
    assert first["metadata"]["labels"] == {"zone": "a"}
    assert first["metadata"]["annotations"] == {"other": "1"}
    assert [taint["key"] for taint in first["spec"]["taints"]] == ["nvidia.com/gpu"]
    assert not first.get("status")


def test_leaving_twice_changes_nothing(api: FakeApi) -> None:
    run(api, RELEASE, while_waiting=end_controller(api))
    writes = len(api.writes)
    assert run(api, RELEASE, while_waiting=lambda: None) == Removed((), ())
    assert len(api.writes) == writes


def test_the_controller_ends_before_a_mark_goes(api: FakeApi) -> None:
    """Else it would write them again."""
    seen: list[bool] = []

    def look() -> None:
        seen.append(bool(marks(api)))
        end_controller(api)()

    run(api, RELEASE, while_waiting=look)
    assert seen == [True]


def test_pods_with_models_are_named_and_nothing_is_changed(api: FakeApi) -> None:
    api.create(pod("server", driver="cache.weightyard.dev"))
    api.create(pod("other", driver="another.example"))
    writes = len(api.writes)
    with pytest.raises(InUse, match="team/server") as refused:
        run(api, RELEASE, while_waiting=lambda: None)
    assert "helm rollback" in (refused.value.hint or "")
    assert len(api.writes) == writes


def test_force_goes_on_and_says_who_uses_models(api: FakeApi) -> None:
    api.create(pod("server", driver="cache.weightyard.dev"))
    left = run(api, Installation(SYSTEM, CONTROLLER, force=True), while_waiting=end_controller(api))
    assert left.pods == ("team/server",)
    assert marks(api) == []


def test_a_controller_that_does_not_end_is_said(api: FakeApi) -> None:
    with pytest.raises(TimedOut, match="didn't end"):
        run(api, RELEASE, while_waiting=lambda: None)
    assert marks(api) != []


def test_a_release_that_stays_has_its_controller_back(api: FakeApi) -> None:
    """With the number of replicas that helm set: another one would conflict at the next upgrade."""
    with pytest.raises(TimedOut):
        run(api, RELEASE, while_waiting=lambda: None)
    assert api.get("Deployment", SYSTEM, CONTROLLER)["spec"]["replicas"] == 2


def test_without_a_controller_nodes_are_unmarked_all_the_same(api: FakeApi) -> None:
    run(api, Installation(SYSTEM, None), while_waiting=lambda: None)
    assert marks(api) == []
    run(api, Installation(SYSTEM, "gone"), while_waiting=lambda: None)


def test_ended_pods_use_nothing() -> None:
    ended = {**pod("a", driver="cache.weightyard.dev"), "status": {"phase": "Succeeded"}}
    assert users([ended, pod("b", driver="cache.weightyard.dev"), pod("c")]) == ["team/b"]


def test_the_command_says_what_it_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    async def clean(release: Installation, **options: bool) -> tuple[Removed, tuple[str, ...]]:
        asked.append(release)
        assert not any(options.values())
        return Removed(("n1",), ("team/a",)), ()

    monkeypatch.setattr(command, "_clean", clean)
    assert main(["cleanup", "-n", "here", "--controller", "c", "--force"]) == 0
    assert asked == [Installation("here", "c", force=True)]
    assert (
        capsys.readouterr().out
        == "labels and taints removed: n1\nstill uses a cached model: team/a\n"
    )
