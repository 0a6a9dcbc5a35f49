"""What a NodeCache's conditions say, as a reader of `kubectl describe nodecache` sees it."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.node_cache import CONDITIONS, NodeCacheStatus, NodeFacts
from cache_agent.api.node_reasons import NodeReason
from cache_agent.node.desired_detail import RefusedDocument
from cache_agent.prewarm.report import NodeReportInput, status
from cache_agent.prewarm.values import DesiredModel, FetchTarget, Inventory, ModelOutcome

PAGE = Path(__file__).parents[3] / "docs" / "prewarming.md"
WORDS = {each.value for each in NodeReason}
SENTENCES = re.compile(r"[A-Z].*[^.\s]\.", re.DOTALL)
OUTCOMES = st.sampled_from(
    [ModelOutcome("Ready"), ModelOutcome("Waiting", "NoSpace", "m"), ModelOutcome("Failed", "NotFound", "m")]
)  # fmt: skip
TEXTS = st.sampled_from(["", "away", "The server said so.", "GET /x: pods is forbidden"])


@st.composite
def views(draw: st.DrawFn) -> NodeReportInput:
    outcomes = draw(st.dictionaries(st.sampled_from([f"m{n}" for n in range(12)]), OUTCOMES))
    target = FetchTarget("reg.test/m:v1", None)
    models = [DesiredModel(name, target, pin=draw(st.booleans())) for name in outcomes]
    return NodeReportInput(
        NodeFacts(), Inventory(), 0.0, draw(st.booleans()), draw(st.booleans()), draw(TEXTS),
        tuple(RefusedDocument("a.yaml", each) for each in draw(st.lists(TEXTS.filter(bool), max_size=2))),
        models, outcomes,
    )  # fmt: skip


@given(views())
def test_every_condition_is_whole_sentences_with_a_known_reason(view: NodeReportInput) -> None:
    found = status(view, NodeCacheStatus()).conditions
    assert tuple(each.type for each in found) == CONDITIONS
    for each in found:
        assert each.reason in WORDS
        assert SENTENCES.fullmatch(each.message), each
        assert ".." not in each.message
        assert ":." not in each.message


def test_conditions_name_the_models_that_they_are_about() -> None:
    target = FetchTarget("reg.test/m:v1", None)
    view = NodeReportInput(
        NodeFacts(), Inventory(), 0.0, synced=True,
        desired_models=[DesiredModel("chat", target, pin=True), DesiredModel("code", target)],
        outcomes={
            "chat": ModelOutcome("Fetching"), "code": ModelOutcome("Waiting", "NoSpace", "too large"),
        },
    )  # fmt: skip
    told = {each.type: each.message for each in status(view, NodeCacheStatus()).conditions}
    assert "chat" in told["PinnedReady"]
    assert "code" not in told["PinnedReady"]
    assert "code" in told["SpaceSufficient"]
    assert "chat" not in told["SpaceSufficient"]


def test_the_reasons_table_is_the_closed_list() -> None:
    _, _, after = PAGE.read_text().partition("| Reason | Meaning |\n|---|---|\n")
    rows = after.partition("\n\n")[0].splitlines()
    assert rows == [f"| `{each}` | {each.meaning} |" for each in NodeReason]
