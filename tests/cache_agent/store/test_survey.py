"""A store's space is never measured while a model is half removed: its bytes would neither be free nor evictable."""

from __future__ import annotations

import threading

from cache_agent.store.budget import Reservation, StoreSpace
from cache_agent.store.disk import Operation
from cache_agent.store.policy import evictable
from cache_agent.store.space import Amount, SpaceLimits
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, pull

ROOM = SpaceLimits(Amount(bytes=1_000_000), Amount())


def within_reach(space: StoreSpace) -> int:
    """The bytes that are free or could be freed."""
    view, candidates = space.survey()
    return view.headroom + evictable(candidates)


def test_every_byte_is_within_reach_at_any_step_of_a_removal(open_node: NodeFactory) -> None:
    removing: list[StoreSpace] = []
    asked: list[threading.Thread] = []
    found: list[int] = []

    def look(operation: Operation) -> None:
        if removing:
            ask = threading.Thread(target=lambda: found.append(within_reach(removing[0])))
            asked.append(ask)
            ask.start()
            # It waits for the removal's end, or answers of this moment.
            ask.join(0.05)

    image, _, _ = simple_image(weights=[150_000])
    node = open_node({"reg.test/m": image}, limits=ROOM, observe=look)
    model = pull(node).model
    removing.append(node.store.first.space)
    node.store.models.remove(model.key)
    for each in asked:
        each.join()
    removing.clear()
    assert asked
    assert set(found) == {ROOM.budget.bytes}


def test_pulls_go_on_while_a_model_is_removed(open_node: NodeFactory) -> None:
    """Its files may take long to unlink."""
    running: list[Reservation] = []
    left: list[int] = []

    def look(operation: Operation) -> None:
        if running:
            spend = threading.Thread(target=lambda: running[0].spend(1))
            spend.start()
            spend.join()
            left.append(running[0].left)

    image, _, _ = simple_image(weights=[150_000])
    node = open_node({"reg.test/m": image}, limits=ROOM, observe=look)
    model = pull(node).model
    running.append(node.store.first.space.reserve(1000))
    node.store.models.remove(model.key)
    assert left == list(range(999, 999 - len(left), -1))
    assert left


def test_no_byte_of_a_pull_is_missed_at_any_step(open_node: NodeFactory) -> None:
    """Law: once its space is reserved, its bytes are promised or stored, also while a file gets name and row."""
    pulling: list[StoreSpace] = []
    asked: list[threading.Thread] = []
    found: dict[int, int] = {}

    def measure(step: int) -> None:
        view = pulling[0].view()
        found[step] = view.own + view.promised

    def look(operation: Operation) -> None:
        if pulling:
            ask = threading.Thread(target=measure, args=(len(asked),))
            asked.append(ask)
            ask.start()
            # It waits for a transaction's end, or answers of this moment.
            ask.join(0.05)

    image, _, _ = simple_image(weights=[150_000])
    node = open_node({"reg.test/m": image}, limits=ROOM, observe=look)
    pulling.append(node.store.first.space)
    pull(node)
    for each in asked:
        each.join()
    whole = node.store.first.space.view().own
    sums = [found[step] for step in sorted(found)]
    reserved = next(step for step, size in enumerate(sums) if size >= whole)
    assert [step for step, size in enumerate(sums) if step > reserved and size < whole] == []
