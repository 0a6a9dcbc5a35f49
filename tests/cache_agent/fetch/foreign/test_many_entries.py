"""An image of very many files holds up nobody: no lock of the store is held, and no space measured, for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache_agent.store.budget import StoreSpace
from cache_agent.store.disk import Operation
from cache_agent.store.ledger import Ledger
from cache_agent.store.removal import GROUP_FILES
from cache_agent.store.space import SpaceView
from tests.cache_agent.images import noise
from tests.cache_agent.nodes import NodeFactory, pull
from tests.modelimage.foreign.images import Maker, files_tar

COUNT = 3 * GROUP_FILES
# What else is written with a model: its row, its names, its leases.
FEW = 10


class Held:
    """The most rows that one transaction changed, and the most changes of the disk under one hold of the ledger."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.rows = self.steps = 0
        self._depth = self._now = 0
        commit, exclusive = Ledger._commit, Ledger.exclusive

        def counting(ledger: Ledger) -> None:
            self.rows = max(self.rows, ledger._db.total_changes - ledger._changes)
            commit(ledger)

        @contextmanager
        def held(ledger: Ledger) -> Iterator[None]:
            self._depth, self._now = self._depth + 1, 0
            with exclusive(ledger):
                yield
            self._depth -= 1

        patched.setattr(Ledger, "_commit", counting)
        patched.setattr(Ledger, "exclusive", held)

    def note(self, step: Operation) -> None:
        if self._depth:
            self._now += 1
            self.steps = max(self.steps, self._now)


@pytest.fixture
def crowded(tmp_path: Path) -> Maker:
    maker = Maker(tmp_path / "layout")
    maker.image(files_tar({f"models/{n}": noise(10, n) for n in range(COUNT)}), tag="v1")
    return maker


def test_the_ledger_is_held_for_a_group_of_files_at_most(
    open_node: NodeFactory, crowded: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a model is stored, listed, checked, evicted and collected."""
    held = Held(monkeypatch)
    node = open_node({"reg.test/m": crowded.layout}, observe=held.note)
    model = pull(node, "reg.test/m:v1").model
    # One row for each of the model's files makes it whole; proofs of access aren't among them.
    assert COUNT < held.rows <= COUNT + FEW
    held.rows = held.steps = 0
    store = node.store.first
    store.models.all()
    assert node.check().findings == []
    assert held.rows <= FEW
    with store.files.hold([each.digest for each in store.ledger.model_files(model.key)]):
        store.models.remove(model.key)
        assert held.rows <= COUNT + FEW
        assert held.steps <= FEW
    held.rows = 0
    store.space.gc()
    assert held.rows <= 2 * GROUP_FILES + FEW
    assert held.steps <= GROUP_FILES
    assert node.check().findings == []


def test_space_is_not_measured_for_each_file(
    open_node: NodeFactory, crowded: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring looks at every file that is being downloaded."""
    counted, view = Counter[str](), StoreSpace.view

    def counting(space: StoreSpace) -> SpaceView:
        counted["views"] += 1
        return view(space)

    monkeypatch.setattr(StoreSpace, "view", counting)
    pull(open_node({"reg.test/m": crowded.layout}), "reg.test/m:v1")
    assert counted["views"] < 10
