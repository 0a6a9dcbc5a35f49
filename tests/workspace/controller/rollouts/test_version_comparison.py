"""What can't be told of two versions never passes: whatever servers do, in any order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from tests.workspace.test_analysis import page
from workspace.analysis import Outcome, ServerTotals, parse_counts
from workspace.controller.rollouts.version_comparison import (
    WARM_UP,
    VersionComparison,
    VersionCounts,
)
from workspace.rollout_spec import Analysis

SETTINGS = Analysis(min_requests=20)


@dataclass
class Server:
    """A server of one version as its metrics show it: `counted` by its present process."""

    counted: int = 0
    began_at: int | None = None

    def reading(self) -> ServerTotals:
        return parse_counts(page(requests=max(1, self.counted)))


# What happens to one of two servers between two readings.
_EVENTS = st.tuples(
    st.sampled_from(["old", "new"]),
    st.sampled_from(["requests", "restart", "unreadable", "gone", "nothing"]),
    st.integers(0, 60),
)


@given(st.lists(_EVENTS, max_size=12))
def test_it_passes_only_when_every_server_was_read_and_enough_was_counted(
    events: list[tuple[str, str, int]],
) -> None:
    comparison = VersionComparison("new/50", 0.0)
    servers = {"old": Server(), "new": Server()}
    restarted_at, now = 0.0, 0.0
    answered = {"old": 0, "new": 0}
    for version, event, number in events:
        now += 15
        server = servers[version]
        restarted = event == "restart" and server.counted > 0
        if event == "requests":
            server.counted += number
            answered[version] += number
        elif event == "restart":
            server.counted = 0
        readings: dict[str, dict[str, ServerTotals | None]] = {
            name: {name: each.reading()} for name, each in servers.items()
        }
        if event == "unreadable":
            readings[version] = {version: None}
        elif event == "gone":
            readings[version] = {}
        seen_before = (
            version in getattr(comparison, "stable" if version == "old" else "candidate").last
        )
        comparison.add(readings["old"], readings["new"], now)
        if restarted and seen_before and server.reading().requests < WARM_UP:
            restarted_at = max(restarted_at, comparison.began)
        result = comparison.result(SETTINGS, now)
        if event in ("unreadable", "gone"):
            assert result.verdict.outcome is Outcome.INCONCLUSIVE
        if result.verdict.outcome is Outcome.PASSED:
            assert min(answered.values()) >= SETTINGS.min_requests
            assert result.seconds <= now - restarted_at


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=20))
def test_no_request_is_counted_twice_and_none_of_a_process_that_ended_is_lost(
    played: list[tuple[int, bool]],
) -> None:
    """But those after its last reading, for which the time begins again."""
    counts, process, expected, began = VersionCounts(), ServerTotals(), 0.0, None
    for number, restarts in played:
        if restarts:
            process = ServerTotals()
        before = process.requests
        process = replace(process, requests=process.requests + number)
        known = counts.last.get("a")
        told = counts.add({"a": process})
        assert told == (known is not None and process.requests < known.requests)
        if told:
            began = None
        if began is not None:
            expected += process.requests - (known.requests if known else before)
        elif process.requests >= WARM_UP:
            began = process.requests
    assert counts.total().requests == expected


def test_what_is_left_out_is_counted_by_nobody() -> None:
    counts = VersionCounts()
    for requests in (10, 30):
        counts.add({"a": ServerTotals(requests=requests)})
    counts.leave_out()
    for requests in (500, 507):
        counts.add({"a": ServerTotals(requests=requests)})
    assert counts.total().requests == 20 + 7


def test_after_a_restart_the_time_begins_again_and_what_was_counted_stays() -> None:
    comparison = VersionComparison("new/50", 0.0)
    for now, new in ((0.0, 10), (300.0, 100), (315.0, 4), (330.0, 60)):
        comparison.add({"a": ServerTotals(100 + now)}, {"b": ServerTotals(new, failed=0)}, now)
    result = comparison.result(SETTINGS, 330.0)
    assert (result.seconds, result.restarted) == (15.0, True)
    assert comparison.candidate.total().requests == 90 + 56
