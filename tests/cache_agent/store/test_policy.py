"""The eviction policy and the space arithmetic: laws over any input, and the choices that people expect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.store.policy import (
    Candidate,
    evictable,
    expected_use,
    next_victims,
    plan_eviction,
)
from cache_agent.store.space import Amount, SpaceView, refusal
from modelimage.digest import Digest
from modelimage.errors import InvalidInput

NOW = 1_800_000_000.0
FILES = [Digest.of(b"file %d" % number) for number in range(8)]


def candidate(
    number: int,
    files: dict[int, int],
    *,
    age: float = 0.0,
    uses: float = 1.0,
    seconds: float = 10.0,
    held: tuple[str, ...] = (),
) -> Candidate:
    return Candidate(
        key=Digest.of(b"model %d" % number),
        image=f"m{number}",
        files={FILES[index]: size for index, size in files.items()},
        last_used=NOW - age,
        uses=uses,
        fetch_seconds=seconds,
        held_by=held,
    )


sizes = st.integers(1, 1000)


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[Candidate]:
    by_file = [draw(sizes) for _ in FILES]
    return [
        candidate(
            number,
            {index: by_file[index] for index in draw(st.sets(st.integers(0, 7), min_size=1))},
            age=draw(st.floats(-1e7, 1e8)),
            uses=draw(st.floats(0, 1e6)),
            seconds=draw(st.floats(0, 1e5)),
            held=draw(st.sampled_from([(), ("pod:a",), ("a pin",)])),
        )
        for number in range(draw(st.integers(0, 6)))
    ]


def freed_by(chosen: list[Candidate], every: list[Candidate]) -> int:
    kept = [c for c in every if c.key not in {v.key for v in chosen}]
    still = {digest for c in kept for digest in c.files}
    return sum({d: s for c in chosen for d, s in c.files.items() if d not in still}.values())


@given(candidates=candidate_lists(), need=st.integers(0, 6000))
def test_a_plan_takes_nothing_that_is_held_frees_what_it_says_and_no_model_in_vain(
    candidates: list[Candidate], need: int
) -> None:
    plan = plan_eviction(candidates, need=need, now=NOW)
    by_key = {c.key: c for c in candidates}
    chosen = [by_key[victim.key] for victim in plan.victims]
    assert not any(c.held_by for c in chosen)
    assert plan.freed == freed_by(chosen, candidates)
    if plan.freed >= need:
        for spared in chosen:
            rest = [c for c in chosen if c.key != spared.key]
            assert freed_by(rest, candidates) < need
    else:
        assert plan.freed == evictable(candidates)
    assert plan == plan_eviction(candidates, need=need, now=NOW)


@given(candidates=candidate_lists(), most=st.integers(0, 7))
def test_the_next_victims_are_the_first_of_those_that_go_when_everything_must(
    candidates: list[Candidate], most: int
) -> None:
    whole = plan_eviction(candidates, need=1 << 62, now=NOW).victims
    found = next_victims(candidates, most=most, now=NOW)
    assert [(each.key, frees) for each, frees in found] == [
        (each.key, each.freed) for each in whole[:most]
    ]


def test_the_older_the_rarer_the_cheaper_go_first() -> None:
    day = 86400.0
    old = candidate(1, {0: 100}, age=60 * day)
    rare = candidate(2, {1: 100}, uses=0.1)
    cheap = candidate(3, {2: 100}, seconds=0.5)
    loved = candidate(4, {3: 100}, uses=50, seconds=600)
    plan = plan_eviction([loved, cheap, rare, old], need=300, now=NOW)
    assert {v.image for v in plan.victims} == {"m1", "m2", "m3"}
    assert all(v.why for v in plan.victims)


def test_a_clock_set_back_makes_nothing_more_precious() -> None:
    future = candidate(1, {0: 10}, age=-1e9)
    assert expected_use(future, NOW) == expected_use(candidate(1, {0: 10}), NOW)


@given(
    own=st.integers(0, 10**6),
    promised=st.integers(0, 10**6),
    free=st.integers(0, 10**6),
    budget=st.integers(0, 10**6),
    min_free=st.integers(0, 10**6),
    need=st.integers(1, 10**6),
)
def test_what_is_promised_after_freeing_the_shortfall_keeps_both_limits(
    own: int, promised: int, free: int, budget: int, min_free: int, need: int
) -> None:
    view = SpaceView(own, promised, 10**7, free, budget, min_free)
    short = view.shortfall(need)
    assert (short == 0) == (need <= view.headroom)
    after = SpaceView(own - short, promised, 10**7, free + short, budget, min_free)
    assert after.headroom >= need


def test_a_refusal_says_all_four_numbers_and_who_holds() -> None:
    view = SpaceView(own=50, promised=0, disk_total=1000, disk_free=500, budget=60, min_free=10)
    text = refusal(100, view, 20, tuple(f"pod:{n}" for n in range(7)))
    for part in ("need 100 B", "have 10 B", "evictable 20 B", "pod:0", "and 2 more"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("80%", 1000, 800),
        ("2GB", 0, 2 * 10**9),
        ("1.5GiB", 0, 3 << 29),
        ("7", 0, 7),
        ("10 k", 0, 10_000),
    ],
)
def test_amounts_are_read_as_people_write_them(text: str, total: int, expected: int) -> None:
    assert Amount.parse(text).of(total) == expected


@pytest.mark.parametrize("text", ["", "x", "101%", "-5", "5 PB", "1e9"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Amount.parse(text)
