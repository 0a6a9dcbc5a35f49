"""A new version has to answer probes before it gets requests, in a simulated cluster."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workspace import samples
from tests.workspace.controller.rollouts.test_canary import (
    V2,
    cluster_of,
    count,
    ready,
    selected,
    status,
)
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from workspace.probes.verdicts import ProbeOutcome, ProbeResult, ProbeVerdict
from workspace.render import names
from workspace.rollout_status import RolloutPhase

PROBES = {"probes": {"configMap": {"name": "answers"}}}


def probed_cluster(strategy: str = "canary", **analysis: Any) -> Cluster:
    steps = {"steps": [{"weight": 25}, {"pause": {}}]} if strategy == "canary" else {}
    return cluster_of(strategy=strategy, analysis={**PROBES, **analysis}, **steps)


def answer(cluster: Cluster, *outcomes: str, **changes: Any) -> None:
    state = status(cluster)
    verdicts = tuple(
        ProbeVerdict(f"p{number}", ProbeOutcome(each), "" if each == "passed" else "the answer lacks the expected text")
        for number, each in enumerate(outcomes)
    )  # fmt: skip
    cluster.probes = ProbeResult(state.version, state.stable, verdicts, **changes)
    cluster.settle()


def served_alone(cluster: Cluster) -> str | None:
    found: str | None = selected(cluster).get(names.REVISION)
    return found


@pytest.mark.parametrize("strategy", ["canary", "blueGreen"])
def test_no_request_goes_to_a_version_before_it_passed(strategy: str) -> None:
    cluster = probed_cluster(strategy)
    assert (status(cluster).phase, ready(cluster)["reason"]) == (
        RolloutPhase.PROGRESSING,
        "Probing",
    )
    # One server is enough to be asked; blueGreen has all.
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (
        3,
        1 if strategy == "canary" else 3,
    )
    assert (status(cluster).weight, status(cluster).attained) == (0, 0)
    assert served_alone(cluster) == status(cluster).stable.rpartition("-")[2]
    answer(cluster, "passed", "passed")
    assert status(cluster).attained == (25 if strategy == "canary" else 100)
    assert served_alone(cluster) != status(cluster).stable.rpartition("-")[2]
    report = status(cluster).probes
    assert report is not None
    assert (report.total, report.passed, report.failed, report.first) == (2, 2, 0, "")


def test_a_version_that_answers_worse_is_taken_back_before_any_request() -> None:
    cluster = probed_cluster()
    answer(cluster, "passed", "both_failed", "failed")
    assert (status(cluster).phase, status(cluster).reason) == (RolloutPhase.FAILED, "Regressed")
    assert (
        "passed 1 of 3 probes. First p2: the answer lacks the expected text."
        in ready(cluster)["message"]
    )
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 0)
    report = status(cluster).probes
    assert report is not None
    assert (report.failed, report.first) == (1, "p2")
    # Tried again only when asked, and then asked anew.
    cluster.probes = None
    cluster.later(60)
    cluster.annotate(resume=status(cluster).token)
    cluster.settle()
    assert (ready(cluster)["reason"], status(cluster).probes) == ("Probing", None)


@pytest.mark.parametrize("outcome", ["both_failed", "unanswered"])
def test_probes_that_say_nothing_pause_it_until_they_do_or_somebody_resumes(outcome: str) -> None:
    cluster = probed_cluster()
    answer(cluster, "passed", outcome)
    assert (status(cluster).phase, ready(cluster)["reason"]) == (
        RolloutPhase.PAUSED,
        "Inconclusive",
    )
    assert served_alone(cluster) == status(cluster).stable.rpartition("-")[2]
    cluster.later(86_400)
    cluster.settle()
    assert status(cluster).weight == 0
    cluster.annotate(resume=status(cluster).token)
    cluster.settle()
    assert (status(cluster).weight, status(cluster).attained) == (25, 25)


def test_a_file_that_cant_be_read_is_said() -> None:
    cluster = probed_cluster()
    answer(cluster, problem="the ConfigMap answers has no key probes.yaml")
    assert "the ConfigMap answers has no key probes.yaml" in ready(cluster)["message"]
    assert ready(cluster)["reason"] == "Inconclusive"
    assert "probes" not in cluster.api.get("Workspace", NAMESPACE, NAME)["status"]["rollout"]


def test_as_many_may_fail_as_is_allowed() -> None:
    cluster = probed_cluster(maxRegression={"probes": 1})
    answer(cluster, "passed", "failed", "both_failed")
    assert ready(cluster)["reason"] == "Inconclusive"
    answer(cluster, "passed", "passed", "failed")
    assert status(cluster).weight == 25


def test_answers_of_another_version_say_nothing() -> None:
    cluster = probed_cluster()
    cluster.probes = ProbeResult(
        "chat-other", status(cluster).stable, (ProbeVerdict("p", ProbeOutcome.PASSED),)
    )
    cluster.settle()
    assert ready(cluster)["reason"] == "Probing"


def test_without_room_one_server_makes_place_for_the_one_that_is_asked() -> None:
    cluster = cluster_of(nodes=3, strategy="canary", analysis=PROBES)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (2, 1)
    assert status(cluster).reason == "Probing"
    assert served_alone(cluster) == status(cluster).stable.rpartition("-")[2]
