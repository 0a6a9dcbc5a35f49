"""What the page shows of a rollout: where it is, what is compared, and what people can do, in every phase."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workspace.controller.rollouts.test_canary import STEPS, cluster_of, compared
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from weightyard.commands.rollout import rollout as commands
from workspace.analysis import Outcome
from workspace.controller.cluster_page.page_rows import is_bad, workspace_problem, workspace_row
from workspace.controller.cluster_page.rollout_row import rollout_row
from workspace.controller.reasons import Reason
from workspace.rollout_status import MeasureReport, RolloutPhase, RolloutStatus

Json = dict[str, Any]
WHERE = f"{NAME} -n {NAMESPACE}"


def row_of(cluster: Cluster) -> Json:
    """The Workspace's row as the page gets it."""
    document = cluster.api.get("Workspace", NAMESPACE, NAME)
    objects = [*cluster.api.list("ControllerRevision"), *cluster.api.list("Pod")]
    return workspace_row(document, objects, {})


def states(row: Json) -> list[str]:
    return [each["state"] for each in row["rollout"]["stages"]]


def test_a_canary_is_up_and_under_way_with_its_steps_shares_and_the_way_on() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    row = row_of(cluster)

    assert (row["ready"], row["serves"], row["bad"]) == (False, True, False)
    assert workspace_problem(row) is None
    found = row["rollout"]
    assert (found["strategy"], found["phase"], found["reason"]) == ("canary", "Paused", "Paused")
    assert (found["stable"], found["version"]) == (1, 2)
    assert (found["step"], found["steps"], found["weight"], found["attained"]) == (2, 4, 25, 25)
    assert states(row) == ["done", "now", "later", "later", "later"]
    assert [each["title"] for each in found["stages"]][:2] == [
        "Give it 25 % of the requests", "Pause until it is resumed",
    ]  # fmt: skip
    assert f"weightyard rollout resume {WHERE}" in [each["command"] for each in found["commands"]]


def test_a_version_that_was_taken_back_says_what_was_worse_and_how_to_try_again() -> None:
    cluster = cluster_of(strategy="canary", steps=[{"weight": 25}, {"analysis": {"seconds": 60}}])
    compared(cluster, Outcome.FAILED, 10)
    cluster.settle()
    row = row_of(cluster)

    assert row["serves"]
    assert row["bad"]
    problem = workspace_problem(row)
    assert problem is not None
    assert "resume the rollout" in problem["what"]
    assert states(row) == ["done", "failed", "later"]
    assert "above the limit" in row["rollout"]["why"]
    assert row["rollout"]["commands"] == [
        {"command": f"weightyard rollout resume {WHERE}", "does": "tries the same version again"}
    ]
    assert "weight" not in row["rollout"]


def test_a_workspace_without_steps_has_no_rollout() -> None:
    assert "rollout" not in row_of(cluster_of())


def state(phase: RolloutPhase, **more: Any) -> Json:
    """A Workspace that is rolled out."""
    measure = MeasureReport(
        name="failed requests", stable="0.001", candidate="0", limit="0.01", passed=True
    )
    status = RolloutStatus(
        phase=phase, version="a-2", stable="a-1", step=1, steps=2, since="2026-01-31T22:00:00Z", weight=0,
        measures=(measure,), **more,
    )  # fmt: skip
    spec = {"rollout": {"strategy": "blueGreen", "steps": [{"pause": {"seconds": 120}}]}}
    return {
        "metadata": {"name": "a", "namespace": "b"},
        "spec": spec,
        "status": {"rollout": status.to_document()},
    }


@pytest.mark.parametrize("phase", RolloutPhase)
def test_every_phase_names_commands_that_there_are_and_both_values(phase: RolloutPhase) -> None:
    row = rollout_row(state(phase), {"1": 7})

    assert row is not None
    assert row["commands"]
    for each in row["commands"]:
        assert each["command"].split()[:2] == ["weightyard", "rollout"]
        assert each["command"].split()[2] in commands.commands
    assert row["measures"] == [
        {"name": "failed requests", "stable": "0.001", "candidate": "0", "limit": "0.01", "passed": True}
    ]  # fmt: skip
    # By number where its ControllerRevision is known, else by id.
    assert (row["stable"], row["version"]) == (7, "2")
    if phase is RolloutPhase.PROGRESSING:
        assert (row["weight"], row["attained"]) == (0, 0)


def test_a_spec_that_cannot_be_read_hides_no_state() -> None:
    document = state(RolloutPhase.PAUSED)
    document["spec"]["rollout"] = {"strategy": "magic"}
    row = rollout_row(document, {})

    assert row is not None
    assert row["phase"] == "Paused"
    assert "stages" not in row


@pytest.mark.parametrize(
    "written", [None, {}, {"phase": "Odd"}, "x", {"phase": "Paused", "version": 1}]
)
def test_what_others_write_there_is_no_rollout(written: Any) -> None:
    document = {"metadata": {"name": "a"}, "spec": {}, "status": {"rollout": written}}
    assert rollout_row(document, {}) is None


WAITING = {
    Reason.COMPARING, Reason.INCONCLUSIVE, Reason.PAUSED, Reason.PROMOTING, Reason.ROLLING_OUT, Reason.FETCHING,
    Reason.STARTING, Reason.NOT_NEEDED,
}  # fmt: skip
WRONG = {Reason.REGRESSED, Reason.NEW_VERSION_FAILED, Reason.ABORTED, Reason.NO_ROOM}


@pytest.mark.parametrize("reason", [*WAITING, *WRONG])
def test_only_what_needs_somebody_is_a_problem(reason: Reason) -> None:
    assert is_bad({"status": "False", "reason": reason.value}) is (reason in WRONG)
