"""Pulls are bounded together, and share their places fairly."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.errors import Cancelled
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.pull_queue import EACH_NAMESPACE, EACH_REGISTRY, PullQueue
from cache_agent.fetch.values import PullRequest
from modelimage.descriptor import Descriptor
from modelimage.errors import Busy
from modelimage.reference import parse_image
from tests.cache_agent.images import MemoryImage, simple_image
from tests.cache_agent.nodes import NodeFactory

IMAGE, _, _ = simple_image(weights=[100])
REPOSITORIES = ("a.test/x/m", "a.test/x/n", "a.test/y/m", "b.test/x/m", "oci:/dir")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(REPOSITORIES), st.integers(0, 2)),
        st.sampled_from(["next", "leave", "withdraw"]),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_limit_is_exceeded_and_every_pull_has_its_turn(steps: list[object]) -> None:
    queue = PullQueue[int](most=4, each_registry=3, each_namespace=2, most_waiting=10)
    asked: dict[int, tuple[str, int]] = {}
    waiting: set[int] = set()
    running: list[int] = []

    def names_of(pull: int) -> tuple[str, str]:
        registry, _, path = asked[pull][0].partition("/")
        return registry, f"{registry}/{path.partition('/')[0]}"

    def held() -> Counter[str]:
        return Counter(name for pull in running for name in names_of(pull))

    def may_run(pull: int) -> bool:
        registry, namespace = names_of(pull)
        return held()[registry] < 3 and held()[namespace] < 2

    def begin() -> bool:
        pull = queue.next()
        if pull is None:
            return False
        best = max(asked[each][1] for each in waiting if may_run(each))
        waiting.discard(pull)
        running.append(pull)
        assert len(running) <= 4
        assert all(count <= (2 if "/" in name else 3) for name, count in held().items())
        assert asked[pull][1] == best
        return True

    for number, step in enumerate(steps):
        match step:
            case (str(repository), int(priority)):
                asked[number] = (repository, priority)
                if queue.enter(number, repository, priority):
                    waiting.add(number)
                else:
                    assert len(waiting) == 10
            case "leave" if running:
                queue.leave(running.pop(0))
            case "withdraw" if waiting:
                assert queue.withdraw(waiting.pop())
            case "next":
                begin()
    while waiting:
        if not begin():
            queue.leave(running.pop(0))


def test_a_slow_registry_leaves_places_for_others() -> None:
    queue = PullQueue[int]()
    for number in range(200):
        queue.enter(number, f"slow.test/team{number}/m", 1)
    while queue.next() is not None:
        pass
    assert queue.enter(1000, "good.test/m", 0)
    assert queue.next() == 1000


@dataclass
class Gate(MemoryImage):
    """An image of a registry that doesn't answer until it is opened."""

    opened: threading.Event = field(default_factory=threading.Event)

    def resolve(self, name: str) -> Descriptor:
        self.opened.wait()
        return super().resolve(name)


COUNT = 60


@pytest.fixture
def gate() -> Gate:
    return Gate(IMAGE.blobs, IMAGE.manifests, IMAGE.names)


def start_all(stack: ExitStack, root: Path, image: MemoryImage, count: int = COUNT) -> list[Pull]:
    """A pull of each of as many repositories, of a namespace each."""
    names = [f"reg.test/team{n}/m" for n in range(count)]
    node = NodeFactory(root / "store", stack)(dict.fromkeys(names, image))
    return [node.pull(PullRequest(parse_image(f"{name}:v1"))) for name in names]


def pull_threads() -> int:
    return sum(thread.name == "pull" for thread in threading.enumerate())


def test_pulls_have_threads_only_when_their_turn_comes(memory_root: Path, gate: Gate) -> None:
    with ExitStack() as stack:
        pulls = start_all(stack, memory_root, gate)
        try:
            assert pull_threads() <= EACH_REGISTRY
        finally:
            gate.opened.set()
        assert len({pull.result().model.key for pull in pulls}) == 1  # type: ignore[union-attr]


def test_a_pull_that_waits_is_cancelled_at_once(memory_root: Path, gate: Gate) -> None:
    with ExitStack() as stack:
        *pulls, last = start_all(stack, memory_root, gate)
        ended = threading.Event()
        last.when_ended(ended.set)
        try:
            last.cancel()
            # Although the registry answers nobody.
            assert ended.is_set()
            with pytest.raises(Cancelled):
                last.result()
            last.join()
        finally:
            gate.opened.set()
        assert all(pull.result() for pull in pulls)


def test_closing_ends_those_that_wait(memory_root: Path, gate: Gate) -> None:
    with ExitStack() as stack:
        pulls = start_all(stack, memory_root, gate)
        opening = threading.Timer(0.05, gate.opened.set)
        opening.start()
        stack.close()
        assert all(pull.is_over for pull in pulls)
        opening.join()


def test_without_threads_all_pulls_end(memory_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also hundreds, one of which ends the next."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "pull":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with ExitStack() as stack:
        for pull in start_all(stack, memory_root, IMAGE, 500):
            with pytest.raises(Busy):
                pull.result()


def test_there_is_an_end_to_waiting(memory_root: Path, gate: Gate) -> None:
    with ExitStack() as stack:
        node = NodeFactory(memory_root / "store", stack)({"reg.test/m": gate})
        node.puller.queue.most_waiting = 5
        request = PullRequest(parse_image("reg.test/m:v1"))
        *pulls, last = (node.pull(request) for _ in range(EACH_NAMESPACE + 6))
        try:
            with pytest.raises(Busy):
                last.result()
        finally:
            gate.opened.set()
        assert all(pull.result() for pull in pulls)
