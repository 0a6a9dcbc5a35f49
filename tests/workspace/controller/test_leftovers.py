"""What helm leaves in a cluster, and `weightyard cleanup --all`: everything of ours goes, nothing of others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workspace.controller.caches import node_cache
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.node_caches.test_heartbeats import beat
from weightyard.cli import main
from weightyard.commands import cleanup as command
from weightyard.crds import definitions

Json = dict[str, Any]
SYSTEM = "weightyard"
OURS = {"app.kubernetes.io/name": "weightyard", "app.kubernetes.io/component": "agent"}


def secret(name: str, *, kept: bool, namespace: str = SYSTEM, labels: Json = OURS) -> Json:
    annotations = {"helm.sh/resource-policy": "keep"} if kept else {}
    metadata = {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}


@pytest.fixture
def api() -> FakeApi:
    """A cluster after `helm uninstall`, with objects of others."""
    made = FakeApi()
    lease = {"name": "weightyard-controller", "namespace": SYSTEM}
    made.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": lease})
    for name in ("n1", "n2"):
        made.create(node_cache(name))
        beat(made, name, SYSTEM)
    made.create(secret("weightyard-peers", kept=True))
    made.create(secret("pull", kept=False))
    made.create(secret("theirs", kept=True, labels={}))
    made.create(secret("elsewhere", kept=True, namespace="other"))
    for each in definitions().values():
        made.create(each)
    other = next(iter(definitions().values()))
    spec = {**other["spec"], "group": "example.com"}
    made.create({**other, "metadata": {"name": "things.example.com"}, "spec": spec})
    return made


def run(api: FakeApi, *options: str) -> int:
    """The command, against a served cluster."""
    original = command._clean

    async def clean(*arguments: Any, **named: Any) -> Any:
        async with HttpApi(api, keda=False) as served:
            patch.setattr(command, "default_connection", served.connection)
            return await original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_clean", clean)
        return main(["cleanup", "--namespace", SYSTEM, *options])


def names(api: FakeApi, kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in api.list(kind)}


def test_what_helm_leaves_goes_and_definitions_stay(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(api, "--all") == 0
    assert names(api, "Lease") == names(api, "NodeCache") == set()
    assert names(api, "Secret") == {"pull", "theirs", "elsewhere"}
    assert names(api, "CustomResourceDefinition") == {*definitions(), "things.example.com"}
    said = capsys.readouterr()
    assert "NodeCache/n1, NodeCache/n2, Secret/weightyard-peers" in said.out
    assert "group 65532" in said.err
    assert run(api, "--all") == 0
    assert "nothing was left" in capsys.readouterr().out


def test_definitions_go_only_when_asked(api: FakeApi) -> None:
    assert run(api, "--crds") != 0
    assert run(api) == 0
    assert set(definitions()) <= names(api, "CustomResourceDefinition")
    assert run(api, "--all", "--crds") == 0
    assert names(api, "CustomResourceDefinition") == {"things.example.com"}


def test_nothing_is_deleted_while_weightyard_runs(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {"containers": [{"name": "a", "image": "a"}]}
    metadata = {"name": "agent-1", "namespace": SYSTEM, "labels": OURS}
    api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    writes = len(api.writes)
    assert run(api, "--all") != 0
    assert len(api.writes) == writes
    assert "weightyard/agent-1" in capsys.readouterr().err
