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


async def flood(review: CallerReview, peer: str = "") -> None:
    for guess in range(1000):
        await review.judge(f"guess-{guess}", peer)


def test_an_owner_who_may_list_both_kinds_everywhere_may_read() -> None:
    assert judge(ApiServer(), "good") == [Verdict()]


@pytest.mark.parametrize("allowed", [(), ("nodecaches",), ("workspaces",)])
def test_an_owner_without_one_of_the_rights_is_told_which(allowed: tuple[str, ...]) -> None:
    (verdict,) = judge(ApiServer(allowed), "good")

    assert verdict.status == 403
    missing = "workspaces" if allowed == ("nodecaches",) else "nodecaches"
    assert missing in verdict.reason


@pytest.mark.parametrize("token", ["", "bad", "x" * 9000, "\udcff", "good good", "good\n", "gööd"])
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


def test_one_stranger_cannot_keep_out_the_others() -> None:
    async def scenario() -> None:
        api = ApiServer()
        review = CallerReview(api, Clock())
        with pytest.raises(RateLimited):
            await flood(review, "10.0.0.1")
        assert (await review.judge("good", "10.0.0.2")).allowed

    asyncio.run(scenario())


def test_who_was_admitted_once_is_checked_again_whatever_strangers_do() -> None:
    async def scenario() -> None:
        api, clock = ApiServer(), Clock()
        review = CallerReview(api, clock)
        assert (await review.judge("good")).allowed
        clock.now += 31
        with pytest.raises(RateLimited):
            await flood(review)
        assert (await review.judge("good")).allowed
        api.tokens.clear()
        clock.now += 31
        assert (await review.judge("good")).status == 401

    asyncio.run(scenario())


def test_a_flood_over_hours_takes_bounded_memory_and_few_requests() -> None:
    async def scenario() -> None:
        api, clock = ApiServer(), Clock()
        review = CallerReview(api, clock)
        await review.judge("good")
        for guess in range(20_000):
            clock.now += 0.5
            with contextlib.suppress(RateLimited):
                await review.judge(f"guess-{guess}", f"10.0.0.{guess % 256}")
        assert len(api.asked) <= 3 + 20 * (20_000 * 0.5 / 10 + 1)
        held = sum(len(each) for each in vars(review).values() if hasattr(each, "__len__"))
        assert held < 600

    asyncio.run(scenario())


class Slow(ApiServer):
    """Answers once told to, and counts those that wait at the same time. `failing` makes it fail."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.now = self.most = 0
        self.failing = False

    async def create(self, path: str, document: Json) -> Json:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.answers.wait()
            if self.failing:
                self.asked.append({})
                raise Unreachable("away")
            return await super().create(path, document)
        finally:
            self.now -= 1


def test_callers_with_the_same_token_ask_once_also_when_the_first_goes() -> None:
    async def scenario() -> None:
        api = Slow()
        review = CallerReview(api, Clock())
        async with asyncio.TaskGroup() as group:
            first = group.create_task(review.judge("good"))
            others = [group.create_task(review.judge("good")) for _ in range(50)]
            await asyncio.sleep(0)
            first.cancel()
            api.answers.set()
        assert all(each.result().allowed for each in others)
        assert len(api.asked) == 3
        assert not review._asking

    asyncio.run(scenario())


def test_few_requests_run_at_once_and_few_callers_wait() -> None:
    async def scenario() -> None:
        api = Slow()
        review = CallerReview(api, Clock())
        async with asyncio.TaskGroup() as group:
            for guess in range(16):
                group.create_task(review.judge(f"guess-{guess}", f"10.0.0.{guess}"))
            waiting = [group.create_task(review.judge("guess-0", "10.0.1.1")) for _ in range(48)]
            await asyncio.sleep(0)
            with pytest.raises(RateLimited):
                await review.judge("guess-0")
            api.answers.set()
        assert api.most <= 4
        assert {each.result().status for each in waiting} == {401}

    asyncio.run(scenario())


def test_an_api_server_that_fails_is_left_alone_for_a_moment() -> None:
    async def scenario() -> None:
        api, clock = Slow(), Clock()
        review = CallerReview(api, clock)
        api.answers.set()
        api.failing = True
        for _ in range(100):
            with pytest.raises(Unreachable):
                await review.judge("good")
        assert len(api.asked) == 1
        api.failing = False
        clock.now += 3
        assert (await review.judge("good")).allowed

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
