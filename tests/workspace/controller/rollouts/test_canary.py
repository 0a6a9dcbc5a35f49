"""A new version beside the one that serves, in a simulated cluster: step by step, and back when it is worse."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workspace import samples
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from workspace.analysis import AnalysisResult, Judgement, Outcome
from workspace.controller.rollouts.rollout_plan import RolloutInput, advance, split, window_of
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.render import names
from workspace.rollout_spec import Rollout, Strategy
from workspace.rollout_status import RolloutPhase, RolloutStatus

Json = dict[str, Any]
V2 = "registry.example/team/llama:v2"
STEPS = [{"weight": 25}, {"pause": {}}, {"weight": 50}, {"analysis": {"seconds": 60}}]


def cluster_of(
    *, nodes: int = 8, replicas: int = 3, labels_nodes: bool = False, **rollout: Any
) -> Cluster:
    """A cluster that serves version 1 and was just asked for version 2. `labels_nodes`: nodes tell what they hold."""
    made = Cluster(labels_nodes=labels_nodes)
    for number in range(nodes):
        made.add_node(f"n{number}")
    made.create_workspace(replicas=replicas, rollout=rollout)
    made.settle()
    made.change_spec(model={"image": V2})
    made.settle()
    return made


def status(cluster: Cluster) -> RolloutStatus:
    found = rollout_before(cluster.api.get("Workspace", NAMESPACE, NAME))
    assert found is not None
    return found


def count(cluster: Cluster, image: str) -> int:
    """The ready servers of an image's version."""
    wanted = samples.pinned(image).image
    return sum(
        pod["metadata"].get("labels", {}).get(names.ROLE) == names.SERVER
        and pod["spec"]["volumes"][0]["csi"]["volumeAttributes"]["image"] == wanted
        for pod in cluster.ready_servers()
    )


def compared(cluster: Cluster, outcome: Outcome, seconds: float) -> None:
    verdict = Judgement(
        outcome, "p95 time to first token in seconds is 2 beside 1, above the limit of 1.25."
    )
    cluster.analysis = AnalysisResult(window_of(status(cluster)), seconds, verdict)


def selected(cluster: Cluster) -> Json:
    found: Json = cluster.api.get("Service", NAMESPACE, NAME)["spec"]["selector"]
    return found


def ready(cluster: Cluster) -> Json:
    conditions = cluster.api.get("Workspace", NAMESPACE, NAME)["status"]["conditions"]
    return next(each for each in conditions if each["type"] == "Ready")


def test_a_canary_takes_its_steps_and_then_replaces_the_old_version() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    # 1 of 4 servers is a quarter of the requests; the old version keeps all of its own.
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 1)
    assert (status(cluster).phase, status(cluster).step) == (RolloutPhase.PAUSED, 1)
    assert (status(cluster).weight, status(cluster).attained) == (25, 25)
    cluster.annotate(resume=status(cluster).token)
    cluster.settle()
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 3)
    assert ready(cluster)["reason"] == "Comparing"
    compared(cluster, Outcome.PASSED, 30)
    cluster.settle()
    assert status(cluster).is_open  # 30 of 60 s
    compared(cluster, Outcome.PASSED, 60)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 3)
    assert ready(cluster)["status"] == "True"
    assert ("Deployment", NAMESPACE, names.candidate(NAME)) not in cluster.api.objects


def test_a_worse_version_is_taken_back_and_not_tried_again() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    compared(cluster, Outcome.FAILED, 15)
    cluster.settle()
    assert (status(cluster).phase, status(cluster).reason) == (RolloutPhase.FAILED, "Regressed")
    assert "2 beside 1" in ready(cluster)["message"]
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 0)
    cluster.analysis = None
    cluster.later(86_400)
    cluster.settle()
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 0)
    cluster.annotate(resume=status(cluster).token)
    cluster.settle()
    assert (status(cluster).phase, status(cluster).step) == (RolloutPhase.PAUSED, 1)


def test_the_version_before_serves_from_zero_after_the_new_one_was_taken_back() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    compared(cluster, Outcome.FAILED, 15)
    cluster.settle()
    for replicas in (0, 2):
        cluster.change_spec(replicas=replicas)
        cluster.settle()
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (2, 0)


@pytest.mark.parametrize("strategy", ["canary", "blueGreen"])
def test_promote_skips_the_steps_and_abort_goes_back(strategy: str) -> None:
    cluster = cluster_of(strategy=strategy, steps=[] if strategy == "blueGreen" else STEPS)
    version = status(cluster).version
    cluster.annotate(abort=version)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.ABORTED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 0)
    cluster.annotate(abort=None, promote=version)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 3)


def test_blue_green_moves_all_requests_at_once_and_keeps_the_old_version() -> None:
    cluster = cluster_of(strategy="blueGreen", steps=[{"pause": {}}], keepSeconds=300)
    old, new = (
        each.rpartition("-")[2] for each in (status(cluster).stable, status(cluster).version)
    )
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 3)
    assert selected(cluster)[names.REVISION] == old
    cluster.annotate(resume=status(cluster).token)
    cluster.settle()
    assert selected(cluster)[names.REVISION] == new
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 3)
    assert status(cluster).attained == 100
    assert cluster.decide().wake_after == 300
    cluster.later(300)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 3)
    assert names.REVISION not in selected(cluster)


def test_without_room_the_old_version_makes_some() -> None:
    cluster = cluster_of(nodes=3, strategy="canary", steps=STEPS)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (2, 1)
    assert status(cluster).in_place
    cluster.annotate(promote=status(cluster).version)
    for _ in range(40):
        cluster.reconcile()
        cluster.step()
        assert len(cluster.ready_servers()) >= 2
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 3)


def test_blue_green_without_room_says_so_and_changes_nothing() -> None:
    cluster = cluster_of(nodes=4, strategy="blueGreen")
    assert ready(cluster)["reason"] == "NoRoomForNewVersion"
    assert count(cluster, samples.IMAGE) == 3
    assert status(cluster).attained == 0


def test_a_version_that_crashes_is_taken_back() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    for pod in cluster.servers():
        if pod["metadata"]["labels"].get(names.TRACK) == names.CANDIDATE:
            ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": "no such option"}}
            status_now = {
                "phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [{"name": "server", "restartCount": 3, "state": {}, "lastState": ended}],
            }  # fmt: skip
            cluster.api.update(
                "Pod",
                NAMESPACE,
                pod["metadata"]["name"],
                lambda d, s=status_now: d.update(status=s),
            )
    cluster.reconcile()
    cluster.settle()
    assert (status(cluster).phase, status(cluster).reason) == (
        RolloutPhase.FAILED,
        "NewVersionFailed",
    )
    assert "no such option" in ready(cluster)["message"]
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 0)


def test_a_third_version_begins_anew_and_the_first_ends_the_rollout() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    before = status(cluster)
    cluster.change_spec(model={"image": "registry.example/team/llama:v3"})
    cluster.settle()
    assert status(cluster).version != before.version
    assert (status(cluster).stable, count(cluster, V2)) == (before.stable, 0)
    cluster.change_spec(model={"image": samples.IMAGE})
    cluster.settle()
    assert "rollout" not in cluster.api.get("Workspace", NAMESPACE, NAME)["status"]
    assert len(cluster.servers()) == 3


@pytest.mark.parametrize("since", ["", "yesterday", "2026-01-01T00:00:00", "2026-99-01T00:00:00Z"])
def test_a_state_that_began_at_no_time_is_none(since: str) -> None:
    state = {"phase": "Paused", "version": "chat-1", "stable": "chat-0", "since": since}
    assert rollout_before({"status": {"rollout": state}}) is None
    # The earliest that a time may be, where conversions to other zones overflow.
    assert rollout_before({"status": {"rollout": state | {"since": "0001-01-01T00:00:00+14:00"}}})


def test_a_pause_by_hand_holds_even_after_its_time() -> None:
    cluster = cluster_of(strategy="canary", steps=[{"weight": 25}, {"pause": {"seconds": 60}}])
    cluster.annotate(pause="true")
    cluster.later(600)
    cluster.settle()
    assert (status(cluster).phase, status(cluster).step) == (RolloutPhase.PAUSED, 1)
    cluster.annotate(pause=None)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED


def test_scaled_to_one_without_room_it_says_so() -> None:
    """What made place for new servers before can't any more."""
    begun = RolloutStatus(
        phase=RolloutPhase.PROGRESSING, version="chat-new", stable="chat-old", weight=10,
        since="2026-01-01T00:00:00Z", in_place=True,
    )  # fmt: skip
    seen = RolloutInput(
        spec=Rollout(strategy=Strategy.CANARY), stable="chat-old", candidate="chat-new", goal=1, stable_ready=1,
        candidate_ready=0, own_ready=0, warm=True, crowded=True, now="2026-01-01T00:00:00Z",
    )  # fmt: skip
    assert advance(seen, begun).reason == "NoRoomForNewVersion"
    assert split(begun, seen).own == 1
