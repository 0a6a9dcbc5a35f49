"""Queries of rollouts: a real Prometheus answers them, and hostile ones in its place lead nowhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidInput, RemoteRefused
from tests.servers.prometheus import PrometheusServer
from tests.workspace.controller.loops.test_analysis_loop import KEY, NEW, OLD, Servers, page, status
from workspace.analysis import (
    Compared,
    Judgement,
    Outcome,
    QueryAnswer,
    Untold,
    with_queries,
)
from workspace.controller.loops.analysis_loop import AnalysisLoop
from workspace.controller.loops.prometheus import Prometheus, PrometheusAddress, filled, one_number
from workspace.controller.runner import Runner
from workspace.rollout_spec import QueryCondition

Json = dict[str, Any]
NAMES = {"namespace": "team-a", "workspace": "chat", "version": "new", "stable": "old"}


@pytest.fixture(scope="module")
def server() -> Iterator[PrometheusServer]:
    with PrometheusServer() as started:
        yield started


def condition(query: str, **bound: float) -> QueryCondition:
    return QueryCondition.model_validate(
        {"name": "refusals", "query": query, **(bound or {"atMost": 1})}
    )


def answer_of(address: PrometheusAddress, *conditions: QueryCondition) -> list[QueryAnswer]:
    async def ask() -> list[QueryAnswer]:
        async with aiohttp.ClientSession() as session:
            return await Prometheus(address, session).answers(conditions, NAMES)

    return asyncio.run(ask())


@pytest.mark.servers
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("vector(0.02)", 0.02),
        ("scalar(vector(3))", 3.0),
        ("sum(vector(1) or vector(2))", 1.0),
        ("count(label_replace(vector(1), 'a', '{{namespace}}/{{workspace}}/{{version}}/{{stable}}', '', '')"
         "{a='team-a/chat/new/old'} or vector(1))", None),
        ("absent_metric", "has no sample"),
        ("vector(1) or label_replace(vector(2), 'a', 'b', '', '')", "has 2 samples, not one: aggregate them"),
        ("vector(0) / vector(0)", "is nan"),
        ("vector(1) / 0", "is inf"),
        ("sum(", "isn't a query that Prometheus answers"),
        ("'text'", "can't be read"),
        ("vector(1)[5m:1m]", "can't be read"),
    ],
)  # fmt: skip
def test_an_answer_is_one_number_or_says_why_not(
    server: PrometheusServer, query: str, found: float | str | None
) -> None:
    (answer,) = answer_of(PrometheusAddress.parse(server.url), condition(query))
    if isinstance(found, float):
        assert answer == Compared("refusals", None, found, 1.0)
    else:
        assert isinstance(answer, Untold)
        assert (found or "isn't a query") in answer.why


@pytest.mark.servers
def test_names_stand_in_queries(server: PrometheusServer) -> None:
    query = (
        "count(label_replace(vector(1), 'a', '{{namespace}}/{{workspace}}/{{version}}/{{stable}}', '', ''))"
        " by (a) and on (a) label_replace(vector(1), 'a', 'team-a/chat/new/old', '', '')"
    )
    (answer,) = answer_of(PrometheusAddress.parse(server.url), condition(query))
    assert answer == Compared("refusals", None, 1.0, 1.0)


class Hostile:
    """In Prometheus' place; `heard` are the requests."""

    def __init__(self, body: bytes = b"", code: int = 200, **headers: str) -> None:
        self.body, self.code, self.headers = body, code, headers
        self.heard: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.heard.append(request)
        return web.Response(body=self.body, status=self.code, headers=self.headers)

    def ask(self, path: str = "", token: Path | None = None) -> QueryAnswer:
        async def scenario() -> QueryAnswer:
            app = web.Application()
            app.router.add_get("/{path:.*}", self.answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
            try:
                async with aiohttp.ClientSession() as session:
                    asked = Prometheus(PrometheusAddress.parse(url, token), session)
                    return (await asked.answers([condition("up")], NAMES))[0]
            finally:
                await runner.cleanup()

        return asyncio.run(scenario())


def vector(*values: object) -> bytes:
    result = [{"metric": {}, "value": [0, each]} for each in values]
    return json.dumps(
        {"status": "success", "data": {"resultType": "vector", "result": result}}
    ).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"data": 1}', b'{"data": {"resultType": "vector", "result": 7}}',
        vector("x"), vector(None), vector({}), vector([1]), vector("9" * 5000), b"[" * 100_000,
        b'{"data": {"resultType": "scalar", "result": []}}', b"x" * (2 << 20), b"\xff" * 9,
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_what_isnt_an_answer_says_nothing(body: bytes) -> None:
    answer = Hostile(body).ask()
    assert isinstance(answer, Untold)
    assert len(answer.why) < 300


@pytest.mark.parametrize("code", [301, 302, 401, 403, 404, 429, 500, 503])
def test_a_refusal_says_nothing_and_leads_nowhere(code: int) -> None:
    hostile = Hostile(vector("0"), code, Location="/elsewhere")
    assert isinstance(hostile.ask(), Untold)
    assert len(hostile.heard) == 1


def test_the_operators_path_arguments_and_token_are_kept(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    hostile = Hostile(vector("0.5"))
    answer = hostile.ask("/tenants/{{namespace}}?dedup=true", token)
    assert answer == Compared("refusals", None, 0.5, 1.0)
    (request,) = hostile.heard
    assert request.path == "/tenants/team-a/api/v1/query"
    assert (request.query["dedup"], request.query["query"]) == ("true", "up")
    assert request.headers["Authorization"] == "Bearer secret"
    token.unlink()
    missing = hostile.ask("", token)
    assert isinstance(missing, Untold)
    assert "the token can't be read" in missing.why


@pytest.mark.parametrize(
    "url", ["", "prometheus:9090", "ftp://p", "http://", "http://a:b@p", "http://[::1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="not a Prometheus' address"):
        PrometheusAddress.parse(url)


@given(
    st.text(max_size=40),
    st.dictionaries(st.sampled_from(sorted(NAMES)), st.from_regex(r"\A[a-z0-9-]{1,9}\Z")),
)
def test_only_known_names_are_filled_in(text: str, names: dict[str, str]) -> None:
    assert filled(text.replace("{{", ""), names) == text.replace("{{", "")
    for name, value in names.items():
        assert filled("{{" + name + "}}", names) == value


MEMBERS = st.sampled_from(["data", "result", "resultType", "value"])
DOCUMENTS = st.recursive(
    st.none() | st.floats() | st.text(),
    lambda some: st.lists(some) | st.dictionaries(MEMBERS, some),
)


@given(st.binary(max_size=64) | DOCUMENTS.map(lambda each: json.dumps(each).encode()))
def test_any_bytes_are_a_number_or_an_error_of_ours(data: bytes) -> None:
    with suppress(RemoteRefused):
        assert isfinite(one_number(data))


PASSED, FAILED = Judgement(Outcome.PASSED, "Fine."), Judgement(Outcome.FAILED, "Slow.")
WAITING = Judgement(Outcome.INCONCLUSIVE, "Too few.")
GOOD, BAD = Compared("a", None, 1, 2), Compared("b", None, 3, 2)
UNTOLD = Untold("c", "has no sample")


@pytest.mark.parametrize(
    ("verdict", "answers", "outcome", "words"),
    [
        (PASSED, [GOOD], Outcome.PASSED, "Fine."),
        (PASSED, [GOOD, BAD], Outcome.FAILED, "b is 3, above the limit of 2"),
        (WAITING, [BAD], Outcome.FAILED, "b is 3"),
        (PASSED, [UNTOLD], Outcome.INCONCLUSIVE, "c has no sample"),
        (PASSED, [UNTOLD, BAD], Outcome.FAILED, "b is 3"),
        (FAILED, [UNTOLD], Outcome.FAILED, "Slow."),
        (FAILED, [BAD], Outcome.FAILED, "Slow. A query's bound is broken"),
        (WAITING, [GOOD], Outcome.INCONCLUSIVE, "Too few."),
        (PASSED, [Compared("d", None, 1, 2, least=True)], Outcome.FAILED, "d is 1, below the limit of 2"),
    ],
)  # fmt: skip
def test_queries_and_counts_decide_together(
    verdict: Judgement, answers: list[QueryAnswer], outcome: Outcome, words: str
) -> None:
    found = with_queries(verdict, answers)
    assert found.outcome is outcome
    assert words in found.text
    assert len(found.measures) == sum(isinstance(each, Compared) for each in answers)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("query", "named", "outcome"),
    [
        ("vector(0.5)", True, Outcome.PASSED),
        ("vector(2)", True, Outcome.FAILED),
        ("absent_metric", True, Outcome.INCONCLUSIVE),
        ("vector(0.5)", False, Outcome.INCONCLUSIVE),
    ],
)
def test_a_rollout_is_judged_by_its_queries_too(
    server: PrometheusServer, query: str, named: bool, outcome: Outcome
) -> None:
    servers = Servers()
    analysis = {"queries": [{"name": "refusals", "query": query, "atMost": 1}]}

    async def scenario(loop: AnalysisLoop, runner: Runner) -> None:
        document = runner.cache.workspace(KEY)
        assert document is not None
        steps = [{"weight": 50}, {"analysis": {"seconds": 60}}]
        document["spec"]["rollout"] = {"strategy": "canary", "steps": steps, "analysis": analysis}
        runner.cache.put(document)
        runner.rollouts[KEY] = status(version=NEW, stable=OLD, step=1)
        servers.shows(old=page(requests=50), new=page(requests=50))
        await loop.compare(KEY)
        servers.shows(old=page(requests=150), new=page(requests=150))
        await loop.compare(KEY)
        assert runner.analyses[KEY].verdict.outcome is outcome, runner.analyses[KEY]

    address = PrometheusAddress.parse(server.url) if named else None
    asyncio.run(servers.run(scenario, address))
