"""Requests that wait for one host: a few, whatever the host does; other hosts don't notice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cache_agent.access.upstream import ask
from modelimage.registry.client import RegistryRepository
from modelimage.registry.exchange import Request, Response, WebOrigin
from modelimage.registry.host_limit import HostBusy, HostLimit
from tests.modelimage.exchanges import Answer

SLOW, QUICK = Request("GET", "https://slow.example/v2/"), Request("GET", "https://r.example/v2/")


class Waiting:
    """A Sender that answers for one host only when it is told to."""

    def __init__(self, expected: int) -> None:
        self.go_on, self.arrived = threading.Event(), threading.Barrier(expected + 1)

    def send(self, request: Request) -> Response:
        if request.origin.host == "slow.example":
            self.arrived.wait()
            self.go_on.wait()
        return Answer(200, url=request.url)


def test_a_slow_host_holds_a_few_threads_and_the_others_none() -> None:
    waiting = Waiting(expected=3)
    sender = HostLimit(waiting, 3)
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(sender.send, SLOW) for _ in range(3)]
        waiting.arrived.wait()
        try:
            with pytest.raises(HostBusy):
                sender.send(SLOW)
            # What it names counts as its own: it can't hold more threads by redirects.
            named = Request("GET", "https://cdn.example/", named_by=SLOW.origin)
            with pytest.raises(HostBusy):
                sender.send(named)
            assert sender.send(QUICK).status == 200
        finally:
            waiting.go_on.set()
        assert [each.result().status for each in held] == [200] * 3
    assert not sender._waiting


def test_it_is_no_outage_of_the_registry() -> None:
    """An outage leaves a lapsed permission in force; whoever fills the places must not."""
    sender = HostLimit(Waiting(0), 0)
    repository = RegistryRepository(sender, WebOrigin.parse("https://r.example"), "team/model")
    with pytest.raises(HostBusy):
        ask(repository, "manifests/v1")
