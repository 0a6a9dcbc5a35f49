"""The feed: snapshots, changes, what a reader missed, readers that are slow or too many, looks that fail."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.page.feed import Feed, event_bytes
from cache_agent.api.page.view import View, apply
from modelimage.errors import RateLimited


class Looks:
    """What the feed looks at: `view` may be changed, `failing` makes looks fail."""

    def __init__(self) -> None:
        self.view: View = {"nodes": {"a": {"used": 0}}}
        self.failing = False
        self.count = 0

    async def __call__(self) -> View:
        self.count += 1
        if self.failing:
            raise RuntimeError("secret of the inside")
        return self.view

    def set(self, used: int) -> None:
        self.view = {"nodes": {"a": {"used": used}}}


def parsed(event: bytes) -> tuple[str, str, Any]:
    """An event's kind, id and data."""
    lines = event.decode().removesuffix("\n\n").split("\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return fields["event"], fields["id"], json.loads(fields["data"])


async def take(reader: Any) -> tuple[str, str, Any]:
    event = await reader.next()
    assert event is not None
    return parsed(event)


async def first_event(feed: Feed) -> str:
    """The id of the snapshot that a new reader gets."""
    with feed.reading("") as reader:
        await feed.look()
        return (await take(reader))[1]


def test_a_reader_gets_a_snapshot_and_then_changes_alone() -> None:
    async def scenario() -> None:
        looks = Looks()
        feed = Feed(looks)
        with feed.reading("") as reader:
            await feed.look()
            kind, _, view = await take(reader)
            assert (kind, view) == ("snapshot", looks.view)
            await feed.look()  # nothing has changed
            looks.set(7)
            await feed.look()
            kind, _, change = await take(reader)
            assert kind == "change"
            assert apply(view, change) == looks.view

    asyncio.run(scenario())


def test_a_reader_that_comes_again_gets_what_it_has_missed() -> None:
    async def scenario() -> None:
        looks = Looks()
        feed = Feed(looks)
        last = await first_event(feed)
        for used in (1, 2):
            looks.set(used)
            await feed.look()
        with feed.reading(last) as reader:
            found = [await take(reader) for _ in range(2)]
        assert [kind for kind, _, _ in found] == ["change", "change"]
        assert found[-1][2]["set"]["nodes"]["a"] == {"used": 2}
        with feed.reading(found[0][1]) as reader:
            assert (await take(reader))[1] == found[1][1]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "last", ["", "x", "other-0", "{name}-99", "{name}--1", "{name}-", "{name}-\u0663"]
)
def test_a_reader_of_another_process_or_of_nonsense_gets_a_snapshot(last: str) -> None:
    async def scenario() -> None:
        looks = Looks()
        feed = Feed(looks)
        name = (await first_event(feed)).partition("-")[0]
        with feed.reading(last.format(name=name)) as reader:
            assert (await take(reader))[0] == "snapshot"

    asyncio.run(scenario())


def test_what_was_forgotten_is_not_pieced_together() -> None:
    async def scenario() -> None:
        looks = Looks()
        feed = Feed(looks)
        last = await first_event(feed)
        for used in range(1, 200):
            looks.set(used)
            await feed.look()
        with feed.reading(last) as reader:
            kind, _, view = await take(reader)
        assert (kind, view) == ("snapshot", looks.view)

    asyncio.run(scenario())


def test_a_reader_that_takes_nothing_is_dropped_and_the_others_go_on() -> None:
    async def scenario() -> None:
        looks = Looks()
        feed = Feed(looks)
        dropped: list[str] = []
        with feed.reading("", lambda: dropped.append("slow")) as slow, feed.reading("") as quick:
            await feed.look()
            await take(quick)
            for used in range(1, 200):
                looks.set(used)
                await feed.look()
                assert (await take(quick))[2]["set"]["nodes"]["a"] == {"used": used}
            assert await slow.next() is None
        assert dropped[:1] == ["slow"]

    asyncio.run(scenario())


def test_a_slow_reader_of_large_events_is_dropped_by_their_bytes() -> None:
    async def scenario() -> None:
        looks = Looks()
        feed = Feed(looks)
        with feed.reading("") as slow:
            for used in range(4):
                looks.view = {"nodes": {"a": {"why": str(used) * (3 << 20)}}}
                await feed.look()
            assert slow.dropped

    asyncio.run(scenario())


def test_too_many_readers_are_refused_and_one_that_leaves_makes_room() -> None:
    async def scenario() -> None:
        feed = Feed(Looks(), most_readers=1)
        with feed.reading(""), pytest.raises(RateLimited) as refused, feed.reading(""):
            pass
        assert refused.value.retry_after
        with feed.reading(""):
            pass

    asyncio.run(scenario())


def test_a_look_that_fails_is_told_without_its_inside_and_the_next_may_succeed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        looks = Looks()
        feed = Feed(looks)
        with feed.reading("") as reader:
            await feed.look()
            await take(reader)
            looks.failing = True
            await feed.look()
            _, _, change = await take(reader)
            assert "secret" not in json.dumps(change)
            assert "problems" in change["set"]
            looks.failing = False
            await feed.look()
            assert (await take(reader))[2]["gone"] == {"problems": ["page"]}
        assert "secret of the inside" in caplog.text

    asyncio.run(scenario())


def test_nothing_is_looked_at_while_nobody_reads() -> None:
    async def scenario() -> None:
        looks = Looks()
        naps = 0

        async def nap(_: float) -> None:
            nonlocal naps
            naps += 1
            await asyncio.sleep(0)

        feed = Feed(looks, sleep=nap)
        running = asyncio.create_task(feed.run())
        for _ in range(20):
            await asyncio.sleep(0)
        assert looks.count == 0
        with feed.reading("") as reader:
            await take(reader)
        seen = looks.count
        for _ in range(20):
            await asyncio.sleep(0)
        # One that had begun may end.
        assert looks.count <= seen + 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())


@given(st.text())
def test_no_text_of_others_breaks_an_event(text: str) -> None:
    event = event_bytes("change", "a-1", {"name": text})

    assert event.count(b"\n\n") == 1
    assert len(event.splitlines()) == 4
    assert b"\r" not in event
    kept = text.encode("utf-8", "replace").decode()
    assert parsed(event)[2] == {"name": kept}
