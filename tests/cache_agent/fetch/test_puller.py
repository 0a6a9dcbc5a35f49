"""Closing a puller waits for every thread that it started."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

from cache_agent.fetch.values import PullRequest
from cache_agent.observability.events import Event, Events, PullEnded
from modelimage.reference import parse_image
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory


class SlowListener(Events):
    """Takes its time over the end of a pull."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.told = False

    def emit(self, event: Event) -> None:
        if isinstance(event, PullEnded):
            self.reached.set()
            self.go.wait()
            self.told = True


def test_a_pull_that_tells_of_its_end_is_joined(memory_root: Path) -> None:
    image, _, _ = simple_image(weights=[100])
    events = SlowListener()
    with ExitStack() as stack:
        node = NodeFactory(memory_root / "store", stack)({"reg.test/m": image}, events=events)
        node.pull(PullRequest(parse_image("reg.test/m:v1")))
        events.reached.wait()
        # A repair that follows the end must not find the node busy.
        assert not node.puller.busy
        closing = threading.Thread(target=node.puller.close)
        closing.start()
        closing.join(0.05)
        assert closing.is_alive()
        events.go.set()
        closing.join()
        assert events.told
