"""What autoscalers answer about nodes that pods wait for, in the condition of the Workspace."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.servers import process
from tests.workspace.controller.observation.test_mount_news import event
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_reconcile import condition
from tests.workspace.controller.test_running import running
from workspace.controller.observation.node_news import (
    NODE_ANSWERS,
    NodeAnswers,
    node_answer,
    parse_answer,
)

Json = dict[str, Any]
POD: Json = {"kind": "Pod", "metadata": {"name": "p", "namespace": "team", "uid": "u"}, "spec": {}}
PLACED = {**POD, "spec": {"nodeName": "n1"}}
SCALER = "cluster-autoscaler"


def answer(
    reason: str, message: str, source: str = SCALER, at: str = "2026-01-01T00:00:00Z"
) -> Json:
    return event(POD, message, reason=reason, source=source, at=at)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (answer("TriggeredScaleUp", "pod triggered scale-up: [{gpu 0->1 (max: 4)}]"), "makes a node: pod triggered"),
        (answer("NotTriggerScaleUp", "1 max node group size reached"), "no node: 1 max node group size reached."),
        (answer("Nominated", "Pod should schedule on: nodeclaim/gpu-7", "karpenter"), "nodeclaim/gpu-7."),
        (answer("FailedScheduling", "incompatible with nodepool default", "karpenter"), "Karpenter makes no node"),
        (answer("TriggeredScaleUp", ""), "it gives no reason"),
        # The scheduler's are in the pod's state, and come again and again.
        (answer("FailedScheduling", "0/3 nodes are available", "default-scheduler"), ""),
        (answer("Scheduled", "assigned"), ""),
    ],
)  # fmt: skip
def test_answers_are_sentences_and_others_events_none(told: Json, says: str) -> None:
    found = parse_answer(told)
    if says:
        assert found is not None
        assert says in found.words
        assert found.words.endswith(".")
    else:
        assert found is None


def test_every_reason_is_watched_and_the_schedulers_events_are_not() -> None:
    assert "involvedObject.kind=Pod,reason=Nominated" in NODE_ANSWERS
    assert [each for each in NODE_ANSWERS if "FailedScheduling" in each] == [
        "involvedObject.kind=Pod,reason=FailedScheduling,source=karpenter"
    ]


@given(order=st.permutations(range(4)))
def test_the_newest_answer_counts_in_whatever_order_they_come(order: list[int]) -> None:
    answers = NodeAnswers()
    for number in order:
        answers.put(answer("NotTriggerScaleUp", f"try {number}", at=f"2026-01-01T00:00:0{number}Z"))
    news = answers.of("team", "u")
    assert news is not None
    assert node_answer([POD], {"u": news}) == "The autoscaler makes no node: try 3."
    assert not answers.put(answer("NotTriggerScaleUp", "try 3", at="2026-01-01T00:00:09Z"))
    # It has its node: what was said before is over.
    assert node_answer([PLACED], {"u": news}) == ""
    answers.forget("team", "u")
    assert answers.of("team", "u") is None


def test_a_text_of_megabytes_is_cut() -> None:
    found = parse_answer(answer("NotTriggerScaleUp", "x" * 1_000_000))
    assert found is not None
    assert len(found.words) < 1000


def test_a_server_without_a_node_says_what_the_autoscaler_answered() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.create_workspace(replicas=1)
        async with running(cluster):

            def waits() -> bool:
                cluster.step()
                return bool(cluster.servers()) and bool(cluster.servers()[0].get("status"))

            await process.until(waits, what="a server without a node")
            told = event(
                cluster.servers()[0], "2 node(s) didn't match Pod's node affinity/selector",
                reason="NotTriggerScaleUp", source=SCALER,
            )  # fmt: skip
            cluster.api.create(told)
            await process.until(
                lambda: (
                    "status" in cluster.api.get("Workspace", NAMESPACE, NAME)
                    and "The autoscaler makes no node: 2 node(s)"
                    in condition(cluster, "Scheduled")["message"]
                ),
                what="the answer",
            )
            assert condition(cluster, "Scheduled")["reason"] == "Unschedulable"

    asyncio.run(scenario())
