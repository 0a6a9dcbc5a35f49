"""The gate's decision, as laws over everything that can be known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache_agent.access.decide import (
    AccessState,
    CacheTTL,
    Proof,
    Step,
    UpstreamAnswer,
    next_step,
    state_of,
)

RULES = CacheTTL(lifetime=300, refusal=10, grace=1000)
standings = st.sampled_from(AccessState)
said = st.none() | st.sampled_from(UpstreamAnswer)


@given(standings, st.none() | standings, said, said)
def test_a_grant_needs_a_permission(
    anyone: AccessState,
    own: AccessState | None,
    said_anyone: UpstreamAnswer | None,
    said_own: UpstreamAnswer | None,
) -> None:
    step = next_step(anyone, own, said_anyone, said_own)
    if step is Step.GRANT:
        allowed = AccessState.ALLOWED in (anyone, own) or UpstreamAnswer.ALLOWED in (
            said_anyone,
            said_own,
        )
        unreachable = UpstreamAnswer.UNREACHABLE in (said_anyone, said_own)
        lapsed = AccessState.LAPSED in (anyone, own)
        assert allowed or (lapsed and unreachable)


@given(standings, st.none() | standings, st.data())
def test_a_caller_is_asked_for_at_most_twice(
    anyone: AccessState, own: AccessState | None, data: st.DataObject
) -> None:
    said_anyone: UpstreamAnswer | None = None
    said_own: UpstreamAnswer | None = None
    for _ in range(2):
        match next_step(anyone, own, said_anyone, said_own):
            case Step.ASK_ANONYMOUSLY:
                assert said_anyone is None
                said_anyone = data.draw(st.sampled_from(UpstreamAnswer))
            case Step.ASK_AS_CALLER:
                assert own is not None
                assert said_own is None
                said_own = data.draw(st.sampled_from(UpstreamAnswer))
            case _:
                return
    final = next_step(anyone, own, said_anyone, said_own)
    assert final not in (Step.ASK_ANONYMOUSLY, Step.ASK_AS_CALLER)


@given(standings, standings)
def test_a_fresh_refusal_of_the_caller_outweighs_what_was_once_public(
    anyone: AccessState, own: AccessState
) -> None:
    step = next_step(anyone, AccessState.REFUSED, UpstreamAnswer.UNREACHABLE, None)
    assert step is (Step.GRANT if anyone is AccessState.ALLOWED else Step.UNREACHABLE)


@given(st.floats(0, 5000), st.booleans())
def test_what_an_answer_is_worth_as_it_ages(age: float, allowed: bool) -> None:
    worth = state_of(Proof(allowed, 1000.0), 1000.0 + age, RULES)
    if not allowed:
        assert worth is (AccessState.REFUSED if age < 10 else AccessState.UNKNOWN)
    elif age < 300:
        assert worth is AccessState.ALLOWED
    else:
        assert worth is (AccessState.LAPSED if age < 1300 else AccessState.UNKNOWN)


def test_a_clock_set_back_makes_no_proof_last() -> None:
    assert state_of(Proof(allowed=True, at=1000.0), 999.0, RULES) is AccessState.UNKNOWN
