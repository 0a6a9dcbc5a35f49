"""`weightyard prewarm` and `status` in a cluster: kubectl, an API server, the controller, and what agents say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from modelimage.errors import AccessDenied, Unreachable, WeightyardError
from tests.workspace.controller import caches
from tests.workspace.controller.living import ServedCluster, point_kubectl_at
from tests.workspace.controller.simulation import Cluster
from weightyard import prewarm_client
from weightyard.cli import main
from weightyard.kubectl import InvalidContext, refused
from weightyard.prewarm_client import ClusterTarget
from workspace.controller.cluster.kube_api import RESOURCES

Json = dict[str, Any]
IMAGE = "registry.example/team/llama:v1"
GPU = {"gpu": "l4"}


class Silent(Cluster):
    """Its nodes say nothing by themselves."""

    def step(self) -> None:
        """Nothing happens."""


@dataclass
class Agents:
    """Two nodes, one with the label; each reports of what selects it at once, the words that `says` has for it."""

    cluster: Silent = field(default_factory=Silent)
    says: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, labels in (("gpu-1", GPU), ("cpu-1", {})):
            self.cluster.api.create(caches.node(name, **labels))
            self.cluster.api.create(caches.node_cache(name))
            self.says[name] = {"state": "Ready"}
        self.cluster.api.watchers.append(self.hear)

    def hear(self, _: str, document: Json) -> None:
        if document["kind"] != "CachedModel":
            return
        if document["metadata"]["generation"] != document.get("status", {}).get(
            "observedGeneration"
        ):
            for name in self.says:
                self.report(name)

    def report(self, node: str) -> None:
        api = self.cluster.api
        labels = api.get("Node", "", node)["metadata"].get("labels") or {}
        wanted = [
            caches.report(
                each["metadata"]["name"],
                generation=each["metadata"]["generation"],
                **self.says[node],
            )
            for each in api.list("CachedModel")
            if (each["spec"].get("nodeSelector") or {}).items() <= labels.items()
        ]
        api.update("NodeCache", "", node, lambda found: found["status"].update(desired=wanted))

    def model(self, name: str = "llama-v1") -> Json:
        return self.cluster.api.get("CachedModel", "", name)


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agents]:
    made = Agents()
    often = partial(ClusterTarget, poll_seconds=0.02)
    monkeypatch.setattr(prewarm_client, "ClusterTarget", often)
    with ServedCluster(made.cluster, alive=True) as url:
        point_kubectl_at(url, monkeypatch)
        yield made


def test_a_model_is_wanted_waited_for_and_wanted_otherwise(
    agents: Agents, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["prewarm", IMAGE, "--nodes", "gpu=l4", "--pin", "--wait", "--timeout", "86400"]) == 0
    )
    shown = capsys.readouterr()
    assert shown.out == "llama-v1 is ready\n"
    assert "llama-v1: 100%, 1/1 nodes" in shown.err
    assert agents.model()["spec"] | {"nodeSelector": GPU, "pin": True} == agents.model()["spec"]
    version = agents.model()["metadata"]["generation"]
    assert main(["--json", "prewarm", IMAGE, "--cluster", "--wait", "--timeout", "86400"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"name": "llama-v1", "desired": True, "ready": True}
    events = [json.loads(line) for line in shown.err.splitlines()]
    assert events[-1]["text"].startswith("2/2 nodes")
    assert agents.model()["metadata"]["generation"] == version + 1
    assert "nodeSelector" not in agents.model()["spec"]
    assert main(["prewarm", IMAGE, "--cluster", "--remove"]) == 0
    assert agents.cluster.api.list("CachedModel") == []
    assert main(["prewarm", IMAGE, "--cluster", "--remove"]) == 3


def test_failures_and_time_that_ran_out_are_told_by_node(
    agents: Agents, capsys: pytest.CaptureFixture[str]
) -> None:
    agents.says["cpu-1"] = {
        "state": "Fetching", "bytesDone": 3 << 30, "bytesTotal": 10 << 30, "secondsLeft": 70,
        "tier": "disk",
    }  # fmt: skip
    requested = ["prewarm", IMAGE, "--cluster", "--wait", "--timeout"]
    assert main([*requested, "0.5"]) == 14
    assert "llama-v1 isn't ready after 0.5 s" in capsys.readouterr().err
    assert main(["status", "--cluster"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [re.split("  +", line) for line in table] == [
        ["MODEL", "NODE", "STATE", "PERCENT", "SIZE", "TIER", "PINNED", "VERIFIED", "LEFT", "NOTE"],
        ["llama-v1", "cpu-1", "fetching", "30%", "10.7 GB", "disk", "-", "-", "1 min 10 s", "-"],
        ["llama-v1", "gpu-1", "ready", "100%", *"------"],
    ]
    agents.says["cpu-1"] = {"state": "Failed", "reason": "AccessDenied", "message": "no"}
    agents.report("cpu-1")
    assert main([*requested, "86400"]) == 4
    assert "cpu-1: no" in capsys.readouterr().err
    assert main(["--json", "status", "llama-v1", "--cluster"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(each["node"], each["state"], each["note"]) for each in rows] == [
        ("cpu-1", "failed", "no"),
        ("gpu-1", "ready", None),
    ]
    assert main(["status", "another", "--cluster"]) == 3


def test_a_cluster_that_holds_nothing_or_knows_no_weightyard(
    agents: Agents, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["status", "--cluster"]) == 0
    assert "no models are desired or cached on 2 nodes" in capsys.readouterr().out
    for kind in ("CachedModel", "NodeCache"):
        monkeypatch.delitem(RESOURCES, kind)
    for requested in (["status", "--cluster"], ["prewarm", IMAGE, "--cluster"]):
        assert main(requested) == 13
        assert "Install the chart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ('error: context "x" does not exist', InvalidContext),
        ("error: stat /x: no such file or directory", InvalidContext),
        ("The connection to the server 127.0.0.1:1 was refused - did you", Unreachable),
        (
            'Error from server (Forbidden): nodecaches is forbidden: "x" does not exist',
            AccessDenied,
        ),
    ],
)
def test_what_kubectl_says_without_a_cluster(words: str, kind: type[WeightyardError]) -> None:
    error = refused(words)
    assert type(error) is kind
    assert str(error.message).startswith("kubectl: ")
    assert "error: " not in error.message
    assert (error.hint is None) is (kind is AccessDenied)
