"""Answers of two versions, judged: a regression is what only the new one gets wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import RemoteRefused
from workspace.analysis import Outcome
from workspace.probes.probe_set import Probe
from workspace.probes.server_answers import (
    Answer,
    Reply,
    Unanswered,
    parse_answer,
    parse_reply,
    request_of,
)
from workspace.probes.verdicts import (
    ProbeOutcome,
    ProbeResult,
    ProbeVerdict,
    needs_serving,
    verdict,
    verdict_alone,
)


def probe(**changes: Any) -> Probe:
    asked = {"name": "p", "prompt": "x", **(changes or {"contains": "Paris"})}
    return Probe.model_validate(asked)


AGREEMENT = probe(agreement={})
RIGHT, WRONG = Answer(" Paris, of course"), Answer(" London")
BUSY, REFUSED = Unanswered("doesn't answer"), Unanswered("answers with status 400", refused=True)


@pytest.mark.parametrize(
    ("new", "serving", "outcome"),
    [
        (RIGHT, None, "passed"), (WRONG, RIGHT, "failed"), (WRONG, WRONG, "both_failed"), (WRONG, BUSY, "unanswered"),
        (WRONG, None, "unanswered"), (WRONG, REFUSED, "both_failed"), (BUSY, RIGHT, "unanswered"),
        (REFUSED, RIGHT, "failed"), (REFUSED, REFUSED, "both_failed"), (REFUSED, WRONG, "both_failed"),
        (REFUSED, BUSY, "unanswered"),
    ],
)  # fmt: skip
def test_only_what_the_serving_version_does_better_is_a_regression(
    new: Reply, serving: Reply | None, outcome: str
) -> None:
    found = verdict(probe(), new, serving)
    assert found.outcome.value == outcome
    assert (found.cause == "") == (outcome == "passed")
    # What people wrote and what models answer are shown to nobody.
    assert "Paris" not in found.cause
    assert "London" not in found.cause


@pytest.mark.parametrize(
    ("expectation", "right", "wrong"),
    [
        ({"exact": " 4 "}, "\n4", "4."), ({"regex": r"^\d+$"}, "42\n", "about 42"),
        ({"jsonSchema": {"type": "object", "required": ["a"]}}, ' {"a": 1}', "{}"),
        ({"jsonSchema": {}}, "[]", "here is your JSON: []"),
    ],
)  # fmt: skip
def test_each_expectation_tells_right_from_wrong(
    expectation: Mapping[str, Any], right: str, wrong: str
) -> None:
    asked = probe(**expectation)
    assert not needs_serving(asked, Answer(right))
    assert verdict(asked, Answer(right), None).outcome is ProbeOutcome.PASSED
    assert needs_serving(asked, Answer(wrong))
    assert verdict(asked, Answer(wrong), Answer(right)).outcome is ProbeOutcome.FAILED


@pytest.mark.parametrize(
    "text", ["ax" * 20_000, "[" * 500 + "]" * 500, "1" * 5000, "NaN", "\ud800"]
)
def test_answers_that_cost_too_much_to_check_never_pass(text: str) -> None:
    for asked in (probe(regex="(a+)+$"), probe(jsonSchema={"type": "string"})):
        assert verdict(asked, Answer(text), Answer(text)).outcome is not ProbeOutcome.PASSED


def answer(*tokens: tuple[str, float], others: Sequence[Mapping[str, float]] = ()) -> Answer:
    """A completion as vLLM sends it."""
    listed = [
        dict([token]) | dict(more)
        for token, more in zip(tokens, others or [{}] * len(tokens), strict=True)
    ]
    logprobs = {
        "tokens": [text for text, _ in tokens], "token_logprobs": [each for _, each in tokens], "top_logprobs": listed,
    }  # fmt: skip
    body = {"choices": [{"text": "".join(text for text, _ in tokens), "logprobs": logprobs}]}
    return parse_answer(AGREEMENT, json.dumps(body).encode())


def test_answers_that_part_where_both_tokens_were_as_likely_agree() -> None:
    serving = answer((" a", -0.1), (" b", -0.7))
    near = answer((" a", -0.1), (" c", -0.69), others=[{}, {" b": -0.71}])
    far = answer((" a", -0.1), (" c", -0.01), others=[{}, {" b": -6.0}])
    unheard = answer((" z", -0.01), (" c", -0.01), others=[{" y": -8.0}, {}])
    found = [verdict(AGREEMENT, each, serving) for each in (serving, near, far, unheard)]
    assert [each.outcome.value for each in found] == ["passed", "passed", "failed", "failed"]
    assert "2.65 nats" in found[2].cause
    half = probe(agreement={"minShare": 0.6})
    assert "50%" in verdict(half, near, serving).cause


def test_agreement_with_nothing() -> None:
    nothing, something = answer(), answer((" a", -0.1))
    assert verdict(AGREEMENT, nothing, nothing).outcome is ProbeOutcome.PASSED
    assert verdict(AGREEMENT, something, nothing).outcome is ProbeOutcome.FAILED
    assert verdict(AGREEMENT, nothing, something).outcome is ProbeOutcome.FAILED


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"text": null}]}',
        b'{"choices": [{"text": 3}]}',
        b"[" * 60_000, b'{"choices":' + b"[" * 900 + b"]" * 900 + b"}", b'{"choices": [{"text": "\\ud800"}]}', b"\xff",
        b'{"choices": [{"text": ' + b"9" * 6000 + b"}]}", b'{"a": [' + b"1," * 60_000 + b"1]}",
        *(
            json.dumps({"choices": [{"text": "a", "logprobs": logprobs}]}).encode()
            for logprobs in (
                None, {}, {"tokens": ["a"], "token_logprobs": [math.nan], "top_logprobs": [{}]},
                {"tokens": ["a"], "token_logprobs": [-math.inf], "top_logprobs": [{}]},
                {"tokens": ["a"], "token_logprobs": [1e9], "top_logprobs": [{}]},
                {"tokens": ["a"], "token_logprobs": [10**400], "top_logprobs": [{}]},
                {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [{}]},
                {"tokens": ["a"], "token_logprobs": [True], "top_logprobs": [{}]},
                {"tokens": ["a", "b"], "token_logprobs": [-1], "top_logprobs": [{}]},
                {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [{"b": math.nan}]},
                {"tokens": "a", "token_logprobs": "b", "top_logprobs": "c"},
            )
        ),
    ],
)  # fmt: skip
def test_hostile_answers_are_refused(body: bytes) -> None:
    with pytest.raises(RemoteRefused):
        parse_answer(AGREEMENT, body)
    assert parse_reply(AGREEMENT, 200, body) == Unanswered("gives no answer of the OpenAI API")


def test_a_status_tells_whether_asking_again_helps() -> None:
    found = [parse_reply(probe(), status, b"") for status in (400, 503)]
    assert found == [REFUSED, Unanswered("answers with status 503")]


def test_a_server_alone_is_judged_in_words_without_another() -> None:
    found = [verdict_alone(probe(), each) for each in (RIGHT, WRONG, REFUSED, BUSY)]
    assert [(each.outcome.value, each.cause) for each in found] == [
        ("passed", ""), ("failed", "the answer lacks the expected text"), ("failed", "answers with status 400"),
        ("unanswered", "doesn't answer"),
    ]  # fmt: skip


def test_chats_are_asked_and_read_in_their_own_form() -> None:
    chat = Probe.model_validate(
        {"name": "p", "messages": [{"role": "user", "content": "hi"}], "agreement": {}}
    )
    asked = request_of(chat, "m")
    assert (asked["model"], asked["temperature"], asked["logprobs"]) == ("m", 0, True)
    token = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1}]}
    body = {"choices": [{"message": {"content": "a"}, "logprobs": {"content": [token]}}]}
    found = parse_answer(chat, json.dumps(body).encode())
    assert (found.text, found.tokens[0].of("b"), found.tokens[0].of("z")) == ("a", -1, -1)


@given(st.lists(st.sampled_from(list(ProbeOutcome)), max_size=6), st.integers(0, 6))
def test_nothing_passes_by_what_was_not_answered(
    outcomes: list[ProbeOutcome], allowed: int
) -> None:
    verdicts = tuple(ProbeVerdict(f"p{number}", each, "x") for number, each in enumerate(outcomes))
    result = ProbeResult("new", "old", verdicts)
    count = outcomes.count
    found = result.outcome(allowed)
    assert (found is Outcome.FAILED) == (count(ProbeOutcome.FAILED) > allowed)
    if found is Outcome.PASSED:
        assert outcomes
        assert not count(ProbeOutcome.UNANSWERED)
        assert len(outcomes) - count(ProbeOutcome.PASSED) <= allowed
    assert (
        ProbeResult("new", "old", verdicts, problem="gone").outcome(allowed) is not Outcome.PASSED
    )
    assert (result.first is None) == all(each is ProbeOutcome.PASSED for each in outcomes)
