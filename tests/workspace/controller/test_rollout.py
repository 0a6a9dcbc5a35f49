"""`weightyard rollout` against an API server: versions are listed, and going back asks for what was asked for then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workspace import samples
from tests.workspace.controller.living import ServedCluster, point_kubectl_at
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from weightyard.cli import main
from workspace.controller.observation import revisions
from workspace.controller.observation.observed import GATEWAY_GROUP
from workspace.controller.rollouts.rollout_view import rollout_before

V2 = "registry.example/team/llama:v2"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster with two versions behind it, reached through kubectl."""
    made = Cluster()
    for name in ("n1", "n2"):
        made.add_node(name)
    made.create_workspace(replicas=1, rollout={"history": 5})
    made.settle()
    made.change_spec(model={"image": V2}, runtime={"args": ["--seed", "1"]})
    made.settle()
    with ServedCluster(made) as url:
        point_kubectl_at(url, monkeypatch)
        yield made


def test_history_lists_the_versions(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "rollout", "history", NAME, "-n", NAMESPACE]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["revision"] for each in listed] == [1, 2]
    assert listed[0]["image"] == samples.pinned(samples.IMAGE).image
    assert listed[1]["image"] == samples.pinned(V2).image


def test_the_namespace_is_that_of_the_context(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBE_NAMESPACE", NAMESPACE)
    assert main(["--json", "rollout", "history", NAME]) == 0
    assert [each["revision"] for each in json.loads(capsys.readouterr().out)] == [1, 2]
    monkeypatch.setenv("KUBE_NAMESPACE", "elsewhere")
    assert main(["--json", "rollout", "history", NAME]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_undo_goes_back_and_undo_again_goes_forth(cluster: Cluster) -> None:
    before = cluster.api.get("Deployment", NAMESPACE, NAME)["spec"]["template"]
    assert main(["rollout", "undo", NAME, "-n", NAMESPACE]) == 0
    cluster.registry_up = False
    cluster.settle()
    spec = cluster.api.get("Workspace", NAMESPACE, NAME)["spec"]
    assert spec["model"]["image"] == samples.IMAGE
    assert "runtime" not in spec
    assert spec["rollout"] == {"history": 5}
    assert cluster.api.get("Deployment", NAMESPACE, NAME)["spec"]["template"] != before
    assert main(["rollout", "undo", NAME, "-n", NAMESPACE, "--to-revision", "2"]) == 0
    cluster.settle()
    assert cluster.api.get("Deployment", NAMESPACE, NAME)["spec"]["template"] == before
    kept = revisions.history(cluster.api.list("ControllerRevision"), NAME)
    assert [each.number for each in kept] == [3, 4]


def test_a_restart_is_undone_like_any_version(cluster: Cluster) -> None:
    cluster.change_spec(rollout={"history": 5, "restartedAt": "today"})
    cluster.settle()
    assert main(["rollout", "undo", NAME, "-n", NAMESPACE]) == 0
    assert cluster.api.get("Workspace", NAMESPACE, NAME)["spec"]["rollout"] == {"history": 5}


def test_status_shows_the_conditions(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", "status", NAME, "-n", NAMESPACE]) == 0
    shown = capsys.readouterr().out
    assert "Ready" in shown
    assert "ready with version 2" in shown


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["undo", NAME, "--to-revision", "9"], 3, "these are: 1, 2"),
        (["status", "nobody"], 3, "nobody"),
        (["undo", "nobody"], 2, "no version before"),
    ],
)
def test_what_isnt_there_is_said(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    assert main(["rollout", *words, "-n", NAMESPACE]) == code
    assert says in capsys.readouterr().err


def test_without_kubectl_the_hint_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["rollout", "status", NAME]) == 13
    assert "Install kubectl" in capsys.readouterr().err


def test_status_shows_the_weights_and_what_gateways_say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Cluster(gateway_groups=frozenset({GATEWAY_GROUP}))
    for number in range(6):
        made.add_node(f"n{number}")
    made.create_workspace(
        replicas=3, rollout={"strategy": "canary", "steps": [{"weight": 5}, {"pause": {}}, {"weight": 40}]},
        route={"parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}]},
    )  # fmt: skip
    made.settle()
    made.change_spec(model={"image": V2})
    made.settle()
    made.refusal = "backend port 80 isn't known"
    state = rollout_before(made.api.get("Workspace", NAMESPACE, NAME))
    assert state is not None
    made.annotate(resume=state.token)
    made.settle()
    with ServedCluster(made) as url:
        point_kubectl_at(url, monkeypatch)
        assert main(["rollout", "status", NAME, "-n", NAMESPACE]) == 0
    shown = capsys.readouterr().out
    assert "accepted by all Gateways" in shown
    assert "gateways/public/https" in shown
    assert "backend port 80 isn't known" in shown
    assert "5 % (wanted: 40 %)" in shown
