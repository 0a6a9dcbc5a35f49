"""The words that say how far a pull is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache_agent.fetch.values import PullSnapshot, PullState
from cache_agent.node.progress_text import Watched, describe

GIB = 1 << 30


def test_the_words() -> None:
    fetching = PullSnapshot(PullState.FETCHING, total=52 * GIB, done=14 * GIB)
    assert (
        describe(Watched(fetching, 2 * GIB, 10)) == "waiting for 38 of 52 GiB, 1.2 GiB/s, 32 s left"
    )
    assert (
        describe(Watched(fetching, 14 * GIB, 30)) == "waiting for 38 of 52 GiB, no bytes for 30 s"
    )
    # It came to 12 GiB within 40 s, and then nothing any more: the average says nothing of the rest.
    still = PullSnapshot(PullState.FETCHING, total=52 * GIB, done=14 * GIB, quiet=30.0)
    assert describe(Watched(still, 2 * GIB, 40)) == "waiting for 38 of 52 GiB, no bytes for 30 s"
    resolving = PullSnapshot(PullState.RESOLVING)
    assert describe(Watched(resolving, 0, 3)) == "waiting for the image to be resolved"


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45), st.integers(0, 1 << 45), st.floats(0, 1e6))
def test_any_pull_can_be_described(total: int, done: int, before: int, since: float) -> None:
    text = describe(
        Watched(PullSnapshot(PullState.FETCHING, total=total, done=done), before, since)
    )
    assert text.startswith("waiting for ")
    assert "-" not in text
