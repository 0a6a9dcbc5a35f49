"""Who may see the page: the API server's word about a token and its owner's rights, remembered for a moment."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.kube.token_reviews import (
    ACCESS_REVIEWS,
    TOKEN_REVIEWS,
    CallerReview,
    Verdict,
    bearer_token,
)
from modelimage.errors import RateLimited, Unreachable

Json = dict[str, Any]
USER = {"username": "ann", "uid": "u1", "groups": ["ops"], "extra": {"scope": ["all"]}}


class ApiServer:
    """Answers reviews. `tokens`: users by token; `allowed`: resources that they may list."""

    def __init__(self, allowed: tuple[str, ...] = ("nodecaches", "workspaces")) -> None:
        self.tokens: dict[str, Json] = {"good": USER}
        self.allowed = allowed
        self.asked: list[Json] = []
        self.status: Json | None = None

    async def create(self, path: str, document: Json) -> Json:
        self.asked.append(copy.deepcopy(document))
        spec = document["spec"]
        if path == TOKEN_REVIEWS:
            user = self.tokens.get(spec["token"])
            found: Json = {"authenticated": True, "user": user} if user else {"error": "unknown"}
            return {"status": self.status or found}
        assert path == ACCESS_REVIEWS
        assert {name: spec[name] for name in ("user", "uid", "groups", "extra")} == {
            "user": "ann", "uid": "u1", "groups": ["ops"], "extra": {"scope": ["all"]},
        }  # fmt: skip
        attributes = spec["resourceAttributes"]
        assert (attributes["group"], attributes["verb"]) == ("weightyard.dev", "list")
        assert "namespace" not in attributes
        return {"status": {"allowed": attributes["resource"] in self.allowed}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def judge(api: ApiServer, *tokens: str) -> list[Verdict]:
    async def main() -> list[Verdict]:
        review = CallerReview(api, Clock())
        return [await review.judge(each) for each in tokens]

    return asyncio.run(main())


def test_an_owner_who_may_list_both_kinds_everywhere_may_read() -> None:
    assert judge(ApiServer(), "good") == [Verdict()]


@pytest.mark.parametrize("allowed", [(), ("nodecaches",), ("workspaces",)])
def test_an_owner_without_one_of_the_rights_is_told_which(allowed: tuple[str, ...]) -> None:
    (verdict,) = judge(ApiServer(allowed), "good")

    assert verdict.status == 403
    missing = "workspaces" if allowed == ("nodecaches",) else "nodecaches"
    assert missing in verdict.reason


@pytest.mark.parametrize("token", ["", "bad", "x" * 9000, "\udcff"])
def test_a_token_that_nobody_knows_is_refused(token: str) -> None:
    assert [each.status for each in judge(ApiServer(), token)] == [401]


@pytest.mark.parametrize(
    "status",
    [
        {}, {"authenticated": False, "user": USER}, {"authenticated": "true", "user": USER},
        {"authenticated": True}, {"authenticated": True, "user": {"username": ""}},
        {"authenticated": True, "user": USER, "error": "half"},
    ],
)  # fmt: skip
def test_half_a_proof_is_none(status: Json) -> None:
    api = ApiServer()
    api.status = status or {"user": USER}

    assert [each.status for each in judge(api, "good")] == [401]


def test_a_verdict_is_kept_for_a_moment_and_never_the_token() -> None:
    async def scenario() -> None:
        api, clock = ApiServer(), Clock()
        review = CallerReview(api, clock)
        await review.judge("good")
        asked = len(api.asked)
        assert (await review.judge("good")).allowed
        assert len(api.asked) == asked
        assert "good" not in repr(vars(review))
        api.tokens.clear()
        clock.now += 31
        assert (await review.judge("good")).status == 401

    asyncio.run(scenario())


def test_strangers_cannot_make_requests_to_the_api_server_without_end() -> None:
    async def scenario() -> None:
        api, clock = ApiServer(), Clock()
        review = CallerReview(api, clock)
        await review.judge("good")
        guesses = 0
        with contextlib.suppress(RateLimited):
            for guesses in range(1000):
                await review.judge(f"guess-{guesses}")
        assert guesses < 30
        assert len(api.asked) < 40
        # Who is known already isn't kept out by them.
        assert (await review.judge("good")).allowed
        clock.now += 11
        assert (await review.judge("another")).status == 401

    asyncio.run(scenario())


def test_a_failure_of_the_api_server_is_no_verdict() -> None:
    class Away(ApiServer):
        async def create(self, path: str, document: Json) -> Json:
            raise Unreachable("away")

    with pytest.raises(Unreachable):
        judge(Away(), "good")


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", ""), ("abc", ""), ("", "")],
)
def test_only_bearer_tokens_count(header: str, token: str) -> None:
    assert bearer_token(header) == token


@given(st.text())
def test_no_header_breaks_it(header: str) -> None:
    assert bearer_token(header) in header
