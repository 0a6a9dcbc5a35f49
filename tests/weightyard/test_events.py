"""`weightyard events`: what an agent did, once and followed."""

from __future__ import annotations

import json
import signal
import threading

import pytest

from cache_agent.observability.events import (
    EvictionReason,
    FileDamaged,
    FileScrubbed,
    ModelEvicted,
    PullEnded,
)
from cache_agent.observability.recent_events import RecentEvents
from tests.servers.process import wait_until
from tests.weightyard.local import Terminal, empty_store


@pytest.fixture
def with_agent(terminal: Terminal) -> Terminal:
    agent = terminal.start("agent")
    wait_until(lambda: terminal.run("events").returncode == 0 or agent.poll(), what="the agent")
    return terminal


def test_what_the_agent_did_is_shown_and_filtered(with_agent: Terminal, tiny_image: str) -> None:
    with_agent.ok("pull", tiny_image)
    assert with_agent.run("pull", "oci:nowhere:v1").returncode

    lines = with_agent.ok("events").splitlines()
    assert [line[10:].partition("  ")[0] for line in lines] == [
        "pull started", "pull ended", "pull started", "warning: pull ended",
    ]  # fmt: skip
    assert f"image={tiny_image}" in lines[1]
    assert len(with_agent.ok("events", "--tail", "1").splitlines()) == 1

    (failed,) = map(
        json.loads, with_agent.ok("events", "--json", "--level", "warning").splitlines()
    )
    assert failed["fields"]["outcome"] == "NotFound"


def test_new_ones_are_shown_as_they_come_until_ctrl_c(
    with_agent: Terminal, tiny_image: str
) -> None:
    following = with_agent.start("events", "--follow")
    assert following.stdout is not None
    with_agent.ok("pull", tiny_image)

    assert "pull started" in following.stdout.readline()
    assert "pull ended" in following.stdout.readline()
    following.send_signal(signal.SIGINT)
    assert following.wait() == 130


def test_without_an_agent_it_says_that_nothing_is_remembered(terminal: Terminal) -> None:
    empty_store(terminal.root)
    done = terminal.run("events")

    assert done.returncode != 0
    assert "no agent is running" in done.stderr


def test_the_newest_thousand_are_kept_and_numbers_rise_across_restarts() -> None:
    now = [1000.0]
    recent = RecentEvents(lambda: now[0])
    for size in range(1500):
        recent.emit(ModelEvicted("m", size, EvictionReason.GC))
        recent.emit(FileScrubbed(1))  # frequent, so it is counted only

    kept = recent.after(0)
    assert [each.fields["freed"] for each in kept] == list(range(500, 1500))
    assert recent.after(kept[-2].number) == [kept[-1]]
    now[0] = 1010.0
    again = RecentEvents(lambda: now[0])
    again.emit(FileDamaged("f", ""))
    assert again.after(kept[-1].number)[0].level == "error"


def test_no_event_is_missed_by_who_asks_for_those_after_the_last() -> None:
    recent = RecentEvents(lambda: 1.0)
    seen: list[str] = []
    writers = [
        threading.Thread(
            target=lambda who=who: [
                recent.emit(PullEnded(f"{who}/{n}", "done", 1, 0, ())) for n in range(100)
            ]
        )
        for who in range(4)
    ]
    newest = 0

    def read() -> None:
        nonlocal newest
        for each in recent.after(newest):
            newest = each.number
            seen.append(each.fields["image"])

    for each in writers:
        each.start()
    while any(each.is_alive() for each in writers):
        read()
    read()
    assert sorted(seen) == sorted(f"{who}/{n}" for who in range(4) for n in range(100))
