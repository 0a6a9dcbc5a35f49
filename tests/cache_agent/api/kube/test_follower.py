"""Following an API server: lists, watches, resumes where it was, lists anew after 410, waits as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from cache_agent.api.kube.backoff import JitteredBackoff
from cache_agent.api.kube.follower import Follower
from cache_agent.api.kube.refusals import Gone
from modelimage.errors import NotFound, RateLimited, Unreachable, WeightyardError

Json = dict[str, Any]


class Enough(Exception):
    """The script is at its end."""


class Silent(Unreachable):
    """The server accepts a watch and breaks it off without an event."""


def an_object(name: str, version: int) -> Json:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


@dataclass
class ScriptedApi:
    """Answers from a script: lists are (objects, version), watches lists of events that may end with an error."""

    lists: list[Any]
    watches: list[list[Any]]
    calls: list[str] = field(default_factory=list)

    async def list_all(self, path: str, query: Mapping[str, str]) -> tuple[list[Json], str]:
        self.calls.append("list")
        answer = self.lists.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def watch(
        self, path: str, query: Mapping[str, str], version: str, *, opened: Callable[[], None]
    ) -> AsyncIterator[tuple[str, Json]]:
        self.calls.append(f"watch {version}")
        if not self.watches:
            raise Enough
        events = self.watches.pop(0)
        if not events or isinstance(events[0], (tuple, Silent)):
            opened()
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event


@dataclass
class Seen:
    """What a follower told."""

    names: set[str] = field(default_factory=set)
    troubles: list[str] = field(default_factory=list)

    def replace(self, documents: list[Json]) -> None:
        self.names = {each["metadata"]["name"] for each in documents}

    def put(self, document: Json) -> None:
        self.names.add(document["metadata"]["name"])

    def drop(self, document: Json) -> None:
        self.names.discard(document["metadata"]["name"])

    def trouble(self, error: WeightyardError | None) -> None:
        self.troubles.append(error.message if error else "")


def follow(api: ScriptedApi) -> tuple[Seen, list[float]]:
    """Follow a script to its end: what was told, and how long was waited."""
    seen, waits = Seen(), []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    follower = Follower(api, "/x", seen, sleep=sleep, backoff=JitteredBackoff(lambda: 0.0))  # type: ignore[arg-type]
    with pytest.raises(Enough):
        asyncio.run(follower.run())
    return seen, waits


def test_changes_are_told_and_a_watch_that_ends_goes_on_where_it_was() -> None:
    api = ScriptedApi(
        [([an_object("a", 1)], "1")],
        [
            [("ADDED", an_object("b", 2)), ("BOOKMARK", an_object("", 7))],
            [("DELETED", an_object("a", 8))],
        ],
    )
    seen, waits = follow(api)
    assert seen.names == {"b"}
    assert api.calls == ["list", "watch 1", "watch 7", "watch 8"]
    assert waits == []


def test_after_410_everything_is_listed_anew() -> None:
    api = ScriptedApi(
        [([an_object("a", 1)], "1"), ([an_object("c", 50)], "50")],
        [[("ADDED", an_object("b", 2)), Gone("too old")]],
    )
    seen, waits = follow(api)
    assert seen.names == {"c"}
    assert api.calls == ["list", "watch 1", "list", "watch 50"]
    assert waits == [0.25]


def test_a_kind_that_goes_and_comes_back_is_listed_anew() -> None:
    api = ScriptedApi(
        [([an_object("a", 1)], "1"), NotFound("no such kind"), ([an_object("b", 9)], "9")],
        [[NotFound("no such kind")]],
    )
    seen, waits = follow(api)
    assert api.calls == ["list", "watch 1", "list", "list", "watch 9"]
    assert seen.names == {"b"}
    assert seen.troubles == ["", "no such kind", "no such kind", ""]
    assert waits == [0.25, 0.5]


def test_a_broken_watch_resumes_from_the_last_change_after_a_wait() -> None:
    api = ScriptedApi(
        [([], "1")],
        [[("ADDED", an_object("a", 5)), Unreachable("reset")], [RateLimited("refused")]],
    )
    seen, waits = follow(api)
    assert api.calls == ["list", "watch 1", "watch 5", "watch 5"]
    assert waits == [0.25, 0.5]
    assert seen.names == {"a"}
    assert seen.troubles[-1] == "refused"


def test_a_watch_works_as_soon_as_the_server_accepts_it_though_nothing_changes() -> None:
    api = ScriptedApi([([], "1")], [[RateLimited("refused")], []])
    seen, _ = follow(api)
    assert api.calls == ["list", "watch 1", "watch 1", "watch 1"]
    assert seen.troubles == ["", "refused", ""]


def test_watches_that_break_off_at_once_are_retried_ever_later() -> None:
    accepted = [("ADDED", an_object("a", 5))]
    api = ScriptedApi([([], "1")], [[Silent("reset")], [Silent("reset")], accepted])
    _, waits = follow(api)
    assert waits == [0.25, 0.5]


def test_a_server_that_asks_to_wait_is_heeded() -> None:
    api = ScriptedApi([RateLimited("busy", retry_after=7.0), ([], "1")], [])
    seen, waits = follow(api)
    assert waits == [7.0]
    assert seen.troubles == ["busy", ""]


def test_a_watch_that_says_nothing_and_ends_is_no_busy_loop() -> None:
    api = ScriptedApi([([], "1")], [[], []])
    _, waits = follow(api)
    assert waits == [0.5, 0.5]


def test_after_an_outage_everything_is_listed_anew() -> None:
    """A watch from a version that a restored server hasn't reached would stay silent until it has."""
    lists = [([an_object("a", 50)], "50"), Unreachable("away"), ([an_object("b", 7)], "7")]
    api = ScriptedApi(lists, [[Unreachable("refused")]])
    seen, _ = follow(api)
    assert api.calls == ["list", "watch 50", "list", "list", "watch 7"]
    assert seen.names == {"b"}


@pytest.mark.parametrize("kind", ["ADDED", "BOOKMARK", "DELETED"])
def test_a_change_from_before_means_that_versions_went_back(kind: str) -> None:
    lists = [([an_object("a", 50)], "50"), ([an_object("b", 7)], "7")]
    api = ScriptedApi(lists, [[(kind, an_object("b", 6))]])
    seen, _ = follow(api)
    assert api.calls == ["list", "watch 50", "list", "watch 7"]
    assert seen.names == {"b"}


def test_versions_that_are_no_numbers_are_not_compared() -> None:
    api = ScriptedApi([([], "x9")], [[("BOOKMARK", {"metadata": {"resourceVersion": "x1"}})]])
    follow(api)
    assert api.calls == ["list", "watch x9", "watch x1"]
