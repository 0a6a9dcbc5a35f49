"""`weightyard rollout` steers a new version beside the one that serves, with a controller at work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.workspace import samples
from tests.workspace.controller.living import ServedCluster, point_kubectl_at
from tests.workspace.controller.rollouts.test_canary import (
    STEPS,
    V2,
    cluster_of,
    compared,
    count,
    status,
)
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from weightyard.cli import main
from workspace.analysis import Outcome
from workspace.rollout_status import RolloutPhase

Json = dict[str, Any]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose canary stands at its first pause, reached through kubectl."""
    made = cluster_of(strategy="canary", steps=STEPS)
    with ServedCluster(made) as url:
        point_kubectl_at(url, monkeypatch)
        yield made


def ask(*words: str) -> int:
    return main(["rollout", *words, NAME, "-n", NAMESPACE])


def test_status_shows_step_share_and_why(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("status") == 0
    shown = capsys.readouterr().out
    for text in (
        status(cluster).version,
        "2 of 4",
        "25 % (wanted: 25 %)",
        "until it is resumed or promoted",
    ):
        assert text in shown
    assert main(["--json", "rollout", "status", NAME, "-n", NAMESPACE]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rollout"]["phase"] == "Paused"
    assert {each["type"] for each in told["conditions"]} >= {"Ready"}


def test_resume_goes_on_with_the_next_step_only(cluster: Cluster) -> None:
    assert ask("resume") == 0
    cluster.settle()
    assert (status(cluster).step, count(cluster, V2)) == (3, 3)


def test_pause_holds_and_resume_lets_go_on(cluster: Cluster) -> None:
    assert ask("resume") == 0
    assert ask("pause") == 0
    cluster.settle()
    before = status(cluster).step
    assert ask("resume") == 0
    cluster.settle()
    # The pause step that was there stays to be done: only the pause by hand is over.
    assert status(cluster).step == before


def test_promote_takes_over_and_undo_returns_at_once(cluster: Cluster) -> None:
    assert ask("promote") == 0
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert ask("undo") == 0
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 0)


def test_a_failed_comparison_is_shown_with_its_measures(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(cluster, Outcome.FAILED, 15)
    cluster.settle()
    assert ask("status") == 0
    shown = capsys.readouterr().out
    assert "Failed (Regressed)" in shown
    assert "taken back" in shown or "isn't tried again" in shown
    assert ask("resume") == 0
    cluster.analysis = None
    cluster.settle()
    assert status(cluster).is_open


def test_abort_goes_back_and_whats_over_isnt_steered(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("abort") == 0
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.ABORTED
    assert ask("abort") == 2
    assert ask("promote") == 0
    cluster.settle()
    for word in ("pause", "resume", "promote", "abort"):
        assert ask(word) == 2
        assert "no new version of chat is being rolled out" in capsys.readouterr().err
