"""A controller's answers to the kubelet."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import pytest

from modelimage.errors import Busy
from workspace.controller.process.health_server import (
    NOT_LISTED,
    SILENCE_SECONDS,
    Liveness,
    answering,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def ask(liveness: Liveness, path: str) -> tuple[int, dict[str, Any]]:
    async def go() -> tuple[int, dict[str, Any]]:
        async with (
            answering(liveness, host="127.0.0.1", port=0) as port,
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}{path}") as answer,
        ):
            return answer.status, await answer.json()

    return asyncio.run(go())


def test_it_is_alive_before_it_is_ready() -> None:
    liveness = Liveness(Clock())
    assert ask(liveness, "/livez") == (200, {"status": "alive"})
    status, body = ask(liveness, "/readyz")
    assert status == 503
    assert body == {
        "ready": False,
        "leads": False,
        "problem": "the API server has not answered yet",
    }


def test_a_kind_that_may_not_be_listed_is_told_before_anything_answered() -> None:
    liveness = Liveness(Clock())
    liveness.watching("Node", NOT_LISTED)
    liveness.watching("Pod", "pods is forbidden")
    assert ask(liveness, "/readyz")[1]["problem"] == "Pod can't be watched: pods is forbidden"


@pytest.mark.parametrize("leads", [True, False])
def test_leader_and_standby_are_ready_while_the_api_server_answers(leads: bool) -> None:
    liveness = Liveness(Clock())
    liveness.beat(leads=leads)
    assert ask(liveness, "/readyz") == (200, {"ready": True, "leads": leads, "problem": None})


def test_silence_of_the_api_server_ends_readiness_and_its_answer_restores_it() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.beat(leads=True)
    clock.now += SILENCE_SECONDS + 1
    status, body = ask(liveness, "/readyz")
    assert (status, body["problem"]) == (503, "no answer of the API server for 61 s")
    liveness.beat(leads=True)
    assert liveness.problem() is None


def test_a_watch_that_does_not_work_ends_readiness_but_a_broken_one_gets_time_to_resume() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.beat(leads=True)
    liveness.watching("Pod", NOT_LISTED)
    assert liveness.problem() == "Pod can't be watched: it has not been listed yet"
    liveness.watching("Pod", None)
    assert liveness.problem() is None
    liveness.watching("Pod", "broken")
    assert liveness.problem() is None
    clock.now += SILENCE_SECONDS + 1
    liveness.beat(leads=True)
    liveness.watching("Pod", "still broken")
    assert liveness.problem() == "Pod can't be watched: still broken"


def test_an_address_that_is_taken_is_said_to_be() -> None:
    async def go(port: int) -> None:
        async with answering(Liveness(Clock()), host="127.0.0.1", port=port):
            pass

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Busy):
        asyncio.run(go(taken.getsockname()[1]))
