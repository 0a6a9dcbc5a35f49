"""Events about Workspaces: one for each change, counted where it repeats, and never a reason to fail."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import AccessDenied
from tests.workspace.controller.direct import DirectApi
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.observation.test_pod_problems import NEXT, ended, strike
from tests.workspace.controller.simulation import NAME, NAMESPACE
from tests.workspace.controller.test_reconcile import Json, cluster, status
from workspace.controller.cluster.event_recorder import EventRecorder, News
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.reasons import Reason
from workspace.controller.status.workspace_news import workspace_news

ABOUT = {
    "apiVersion": "weightyard.dev/v1alpha1", "kind": "Workspace",
    "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": "u"},
}  # fmt: skip
CRASH = News("Warning", Reason.CRASH_LOOP, "It ends.")


class Recording:
    """A recorder over the fake API, on a clock that the test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)
        self.direct = DirectApi(FakeApi())
        self.recorder = self.another()

    def another(self) -> EventRecorder:
        """The recorder of a controller that takes over."""
        return EventRecorder(cast(KubernetesApi, self.direct), lambda: self.time)

    def record(self, news: News, *, cause: str = "") -> None:
        asyncio.run(self.recorder.record(ABOUT, news, cause=cause))

    def events(self) -> list[Json]:
        return self.direct.fake.list("Event")


def test_what_repeats_is_counted_also_by_the_next_controller() -> None:
    made = Recording()
    made.record(CRASH)
    made.time += timedelta(minutes=1)
    made.record(CRASH)
    made.recorder = made.another()
    made.record(CRASH)
    (event,) = made.events()
    assert event["count"] == 3
    assert (event["firstTimestamp"], event["lastTimestamp"]) == (
        "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z",
    )  # fmt: skip
    assert event["involvedObject"]["namespace"] == event["metadata"]["namespace"] == NAMESPACE


def test_a_retry_after_a_crash_counts_once() -> None:
    made = Recording()
    for cause in ("first", "first", "second"):
        made.record(CRASH, cause=cause)
    assert [each["count"] for each in made.events()] == [2]


def test_an_event_that_cannot_be_written_fails_nothing() -> None:
    made = Recording()
    made.direct.faults.append((AccessDenied("no right"), False))
    made.record(CRASH)
    assert made.events() == []


@given(gaps=st.lists(st.integers(0, 900), max_size=120))
def test_an_object_with_much_news_is_limited_and_one_with_little_is_not(gaps: list[int]) -> None:
    made = Recording()
    start = made.time
    for number, gap in enumerate(gaps):
        made.time += timedelta(seconds=gap)
        made.record(News("Normal", Reason.SCALING_UP, f"From {number}."))
    seconds = (made.time - start).total_seconds()
    assert len(made.events()) <= 25 + seconds / 300
    assert len(made.events()) >= min(len(gaps), 25)


def follow(made: Any, rounds: int = 25) -> list[News]:
    """The news of some passes."""
    found: list[News] = []
    for _ in range(rounds):
        before = made.api.get("Workspace", NAMESPACE, NAME).get("status") or {}
        made.reconcile()
        found += workspace_news(before, status(made))
        made.step()
    return found


def test_a_first_start_a_rollout_and_a_crash_are_told_once_each() -> None:
    made = cluster("n1", "n2", replicas=1)
    made.labels_nodes = True
    reasons = [each.reason for each in follow(made)]
    assert reasons[-1] == "Ready"
    assert len(reasons) == len(set(reasons))
    made.change_spec(**NEXT)
    told = follow(made)
    assert {each.type for each in told} == {"Normal"}
    assert any("Version 2 replaces version 1" in each.message for each in told)
    strike(made, ended("Error", 1, "boom"), made.servers())
    before = status(made)
    made.reconcile()
    (crash,) = workspace_news(before, status(made))
    assert (crash.type, crash.reason) == ("Warning", "CrashLoopBackOff")
    assert "boom" in crash.message


def test_a_status_that_says_the_same_is_no_news() -> None:
    made = cluster("n1", replicas=1)
    made.settle()
    assert workspace_news(status(made), status(made)) == []


@pytest.mark.parametrize(
    "spec", [{"resources": {}}, {"model": {"s3": "b/p"}}, {"scale": {"min": 3, "max": 2}}]
)
def test_a_refusal_is_a_warning_with_what_to_do(spec: Json) -> None:
    made = cluster("n1", **spec)
    (told,) = follow(made)
    assert (told.type, told.reason) == ("Warning", "InvalidInput")
