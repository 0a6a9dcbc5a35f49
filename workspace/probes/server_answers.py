"""What a server is asked, and what it answered: the OpenAI API's bodies, as bytes. Never a socket.

Asked greedily and with a seed, so that the same version gives the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelimage.bounds import MALFORMED
from modelimage.canonical import check_halves
from modelimage.errors import RemoteRefused
from workspace.probes.probe_set import Probe

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
# 512 tokens with five alternatives each take 150 kB.
MOST_BYTES: Final = 512 << 10
# With these statuses a server says that it won't answer this request: too long for it, or more than it can do.
_REFUSALS: Final = frozenset({400, 413, 422, 500, 501})
_MOST_VALUES: Final = 50_000
_ALTERNATIVES: Final = 5


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """A token of an answer, its logarithm of probability, and those of tokens that might have stood there instead."""

    text: str
    logprob: float
    others: Mapping[str, float] = field(default_factory=dict)

    def of(self, text: str) -> float:
        """The logarithm of another token's probability here; if it isn't known, the greatest that it can be."""
        if text == self.text:
            return self.logprob
        return self.others.get(text, min([self.logprob, *self.others.values()]))


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer; `tokens` only when they were asked for."""

    text: str
    tokens: tuple[AnswerToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Why there is no answer, in words that neither quote it nor name the server: others read them.

    `refused`: the server says that the request can't be answered, and will again.
    """

    cause: str
    refused: bool = False


Reply = Answer | Unanswered


def path_of(probe: Probe) -> str:
    """The path that a probe is asked at."""
    return COMPLETIONS if probe.messages is None else CHAT


def request_of(probe: Probe, model: str | None = None) -> dict[str, Any]:
    """The request's body. Without a model's name a server takes the one that it has."""
    asked: dict[str, Any] = {
        "max_tokens": probe.max_tokens,
        "temperature": 0,
        "seed": 0,
        "stream": False,
    }
    if model is not None:
        asked["model"] = model
    if probe.messages is None:
        asked["prompt"] = probe.prompt
    else:
        asked["messages"] = [each.model_dump() for each in probe.messages]
    if probe.agreement is not None:
        # The two APIs ask for alternatives in different ways: completions by a
        # number, chat by a switch and a number.
        chat = {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        asked |= {"logprobs": _ALTERNATIVES} if probe.messages is None else chat
    return asked


def parse_reply(probe: Probe, status: int, data: bytes) -> Reply:
    """What a response with this status and body says."""
    if status != 200:
        return Unanswered(f"answers with status {status}", refused=status in _REFUSALS)
    try:
        return parse_answer(probe, data)
    except RemoteRefused:
        return Unanswered("gives no answer of the OpenAI API")


def parse_answer(probe: Probe, data: bytes) -> Answer:
    """The answer in a response's body. Raises RemoteRefused for what isn't one."""
    try:
        choice = _parsed(data)["choices"][0]
        if probe.messages is None:
            text, tokens = choice["text"], _completion_tokens
        else:
            text, tokens = choice["message"]["content"], _chat_tokens
        return Answer(
            _text(text), tokens(choice["logprobs"]) if probe.agreement is not None else ()
        )
    except MALFORMED as error:
        raise RemoteRefused("the answer isn't one of the OpenAI API") from error


def _parsed(data: bytes) -> dict[str, Any]:
    # Counted before decoding, as lists of nothing take 25 times their size in memory.
    if sum(map(data.count, (b",", b"[", b"{", b":"))) > _MOST_VALUES:
        raise ValueError("too many values")
    document = json.loads(data.decode())
    check_halves(document, data)
    if not isinstance(document, dict):
        raise TypeError("not an object")
    return document


def _completion_tokens(found: Any) -> tuple[AnswerToken, ...]:
    columns = (found["tokens"], found["token_logprobs"], found["top_logprobs"])
    if not all(isinstance(each, list) for each in columns):
        raise TypeError("not lists")
    return tuple(
        _token(text, logprob, dict(others or {}))
        for text, logprob, others in zip(*columns, strict=True)
    )


def _chat_tokens(found: Any) -> tuple[AnswerToken, ...]:
    return tuple(
        _token(
            each["token"],
            each["logprob"],
            {other["token"]: other["logprob"] for other in each.get("top_logprobs") or ()},
        )
        for each in found["content"]
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _token(text: Any, logprob: Any, others: Mapping[Any, Any]) -> AnswerToken:
    return AnswerToken(
        _text(text),
        _logprob(logprob),
        {_text(name): _logprob(each) for name, each in others.items()},
    )


def _logprob(value: Any) -> float:
    # NaN is what a broken model computes, and what compares with nothing. Rounding may lead above 0.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e6 <= value <= 0.01:
        raise ValueError("no logarithm of a probability")
    return float(value)
