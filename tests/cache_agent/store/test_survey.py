"""A store's space is never measured while a model is half removed: its bytes would neither be free nor evictable."""

from __future__ import annotations

import threading

from cache_agent.node.node import Node
from cache_agent.store.budget import StoreSpace
from cache_agent.store.disk import Operation
from cache_agent.store.space import Amount, SpaceLimits
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, pull

ROOM = SpaceLimits(Amount(bytes=1_000_000), Amount())


def can_be_measured(space: StoreSpace) -> bool:
    """Whether another thread could take a survey now."""
    answers: list[bool] = []

    def ask() -> None:
        lock = space.reservations.exclusive()
        answers.append(lock.acquire(blocking=False))
        if answers[0]:
            lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers[0]


def test_nothing_is_measured_at_any_step_of_a_removal(open_node: NodeFactory) -> None:
    removing: list[Node] = []
    steps: list[tuple[Operation, bool]] = []

    def look(operation: Operation) -> None:
        for node in removing:
            steps.append((operation, can_be_measured(node.store.first.space)))

    image, _, _ = simple_image(weights=[150_000])
    node = open_node({"reg.test/m": image}, limits=ROOM, observe=look)
    model = pull(node).model
    space = node.store.first.space
    removing.append(node)
    node.store.models.remove(model.key)
    removing.clear()
    assert steps
    assert [operation for operation, measured in steps if measured] == []
    view, candidates = space.survey()
    assert (candidates, view.headroom) == ([], ROOM.budget.bytes)
