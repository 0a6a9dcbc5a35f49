"""Where a chunk comes from: laws that hold for any members, and what a membership change moves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cache_agent.peers.chunk_planner import (
    LocalState,
    Peer,
    PeerLimits,
    Take,
    UseUpstream,
    Wait,
    decide,
    ranked,
)

RULES = PeerLimits()
NAMES = st.lists(st.from_regex(r"10\.0\.[0-9]\.[0-9]{1,2}:7946", fullmatch=True), unique=True)
CHUNKS = [f"{'ab' * 32}/{n}" for n in range(600)]


@st.composite
def peers(draw: st.DrawFn) -> list[Peer]:
    names = draw(NAMES.filter(lambda found: len(found) <= 8))
    flag = st.booleans()
    return [
        Peer(
            name,
            draw(st.sampled_from(["a", "b"])),
            has=draw(flag),
            coming=draw(flag),
            moving=draw(flag),
            free_at=draw(st.sampled_from([0.0, 100.5])),
        )
        for name in names
    ]


@given(NAMES.filter(bool), st.sampled_from(CHUNKS), st.randoms())
def test_every_chunk_has_one_owner_whoever_asks(
    names: list[str], chunk: str, random: object
) -> None:
    mixed = list(names)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert ranked(chunk, names) == ranked(chunk, mixed)
    owners = {
        name
        for name in names
        if decide(chunk, LocalState(name), [Peer(n) for n in names if n != name], 100.0, RULES)
        == UseUpstream()
    }
    assert owners == {ranked(chunk, names)[0]}


@given(NAMES.filter(lambda names: len(names) > 1))
def test_a_member_that_goes_moves_its_own_chunks_only(names: list[str]) -> None:
    gone, *left = names
    for chunk in CHUNKS[:20]:
        before, after = ranked(chunk, names)[0], ranked(chunk, left)[0]
        assert before in (after, gone)


def test_shares_are_about_equal() -> None:
    names = [f"10.0.0.{n}:7946" for n in range(6)]
    shares = Counter(ranked(chunk, names)[0] for chunk in CHUNKS)
    assert all(60 <= shares[name] <= 140 for name in names), shares


@given(peers(), st.integers(0, 3), st.booleans(), st.sampled_from(CHUNKS))
def test_it_takes_only_from_who_has_it_and_is_free(
    others: list[Peer], slots: int, idle: bool, chunk: str
) -> None:
    here = LocalState("here", "a", waited=1.0, held=1.0, idle=idle, slots=slots)
    match decide(chunk, here, others, 100.0, RULES):
        case Take(peer):
            [taken] = [each for each in others if each.id == peer]
            assert taken.has
            assert taken.free_at <= 100.0
        case UseUpstream():
            assert slots > 0
            assert not any(each.has for each in others)
        case Wait(seconds):
            assert seconds >= RULES.poll


@given(peers(), st.sampled_from(CHUNKS))
def test_when_all_others_stand_still_time_alone_brings_the_chunk(
    others: list[Peer], chunk: str
) -> None:
    """Law of `decide`."""
    long_ago = RULES.stall_timeout * (len(others) + 1)
    here = LocalState("here", "a", waited=long_ago, held=long_ago, idle=True)
    still = [replace(each, moving=False) for each in others]
    step = decide(chunk, here, still, 200.0, RULES)
    assert not isinstance(step, Wait)


def test_nobody_else_means_upstream() -> None:
    assert decide(CHUNKS[0], LocalState("here"), [], 0.0, RULES) == UseUpstream()


def test_what_is_coming_to_another_is_waited_for_even_by_its_owner() -> None:
    """A node that began before this one took part isn't raced."""
    names = ["here", "other"]
    owned = next(chunk for chunk in CHUNKS if ranked(chunk, names)[0] == "here")
    coming = Peer("other", coming=True)
    assert isinstance(decide(owned, LocalState("here"), [coming], 0.0, RULES), Wait)
    assert (
        decide(owned, LocalState("here"), [replace(coming, moving=False)], 0.0, RULES)
        == UseUpstream()
    )


def test_a_node_with_nothing_left_takes_over_what_nobody_began() -> None:
    theirs = next(chunk for chunk in CHUNKS if ranked(chunk, ["here", "other"])[0] == "other")
    here = LocalState("here", waited=RULES.steal_after)
    assert isinstance(decide(theirs, here, [Peer("other")], 0.0, RULES), Wait)
    assert decide(theirs, replace(here, idle=True), [Peer("other")], 0.0, RULES) == UseUpstream()


def test_one_node_of_a_zone_carries_a_chunk_across() -> None:
    far = Peer("far", "b", has=True)
    near = [f"near-{n}" for n in range(5)]
    takers = [
        name
        for name in near
        if decide(
            CHUNKS[0],
            LocalState(name, "a"),
            [far, *(Peer(n, "a") for n in near if n != name)],
            0.0,
            RULES,
        )
        == Take("far")
    ]
    assert takers == [ranked(CHUNKS[0], near)[0]]
    local = Peer("near-x", "a", has=True)
    assert decide(CHUNKS[0], LocalState("near-y", "a"), [far, local], 0.0, RULES) == Take("near-x")


def test_a_holder_is_asked_by_so_many_at_once_and_holders_share_the_rest() -> None:
    names = [f"n{n:03d}" for n in range(40)]

    def takers(holders: int) -> list[str]:
        seeds = [Peer(f"seed{n}", has=True) for n in range(holders)]
        found = []
        for name in names:
            step = decide(
                CHUNKS[1],
                LocalState(name),
                [*seeds, *(Peer(n) for n in names if n != name)],
                0.0,
                RULES,
            )
            found += [step.peer] if isinstance(step, Take) else []
        return found

    assert len(takers(1)) == RULES.fan_out
    spread = Counter(takers(4))
    assert sum(spread.values()) == 4 * RULES.fan_out
    assert max(spread.values()) <= 16


def test_a_busy_holder_is_waited_for_until_patience_ends() -> None:
    busy = Peer("other", has=True, free_at=5.0)
    assert decide(CHUNKS[0], LocalState("here"), [busy], 4.0, RULES) == Wait(1.0)
    owned = next(chunk for chunk in CHUNKS if ranked(chunk, ["here", "other"])[0] == "here")
    late = LocalState("here", held=RULES.stall_timeout, waited=RULES.stall_timeout)
    assert decide(owned, late, [busy], 4.0, RULES) == UseUpstream()
