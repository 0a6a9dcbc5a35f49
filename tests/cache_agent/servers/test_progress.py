"""The words that say how far a pull is."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cache_agent.fetch.values import PullSnapshot, PullState
from cache_agent.node.progress_text import describe, phase

GIB = 1 << 30
FETCHING = PullSnapshot(PullState.FETCHING, total=52 * GIB, done=14 * GIB)
RESOLVING = PullSnapshot(PullState.RESOLVING)


def test_the_words() -> None:
    moving = replace(FETCHING, rate=1.2 * GIB, quiet=0.0)
    assert describe(moving) == "waiting for 38 of 52 GiB, 1.2 GiB/s, 32 s left"
    assert phase(moving) == "being fetched"
    assert describe(FETCHING) == "waiting for 38 of 52 GiB"
    queued = replace(FETCHING, quiet=30.0, queued=True)
    assert describe(queued) == "waiting for 38 of 52 GiB, after others"
    assert phase(queued) == "waiting for its turn"
    for whole in (
        replace(FETCHING, done=FETCHING.total, quiet=30.0),
        replace(FETCHING, state=PullState.PUBLISHING, quiet=30.0),
    ):
        assert not whole.stands_still
        assert "no bytes" not in describe(whole) + phase(whole)
    begun = replace(FETCHING, quiet=0.1)
    assert (describe(begun), phase(begun)) == ("waiting for 38 of 52 GiB", "being fetched")
    still = replace(FETCHING, quiet=30.0)
    assert describe(still) == "waiting for 38 of 52 GiB, no bytes for 30 s"
    assert phase(still) == "being fetched, no bytes for 30 s"
    assert describe(RESOLVING) == "waiting for the image to be resolved"
    assert phase(RESOLVING) == "its image is being resolved"


@given(
    st.integers(0, 1 << 45),
    st.integers(0, 1 << 45),
    st.floats(0, 1e12),
    st.none() | st.floats(0, 1e6),
)
def test_any_pull_can_be_described(total: int, done: int, rate: float, quiet: float | None) -> None:
    pull = PullSnapshot(PullState.FETCHING, total=total, done=done, rate=rate, quiet=quiet)
    text = describe(pull)
    assert text.startswith("waiting for ")
    assert "-" not in text + phase(pull)
