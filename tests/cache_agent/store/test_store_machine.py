"""The store against a model of it: a dict of models and a byte budget for each root, on one root and on two. Whatever
order things happen in, what is leased or pinned stays where it is, the budgets hold, and the checker finds nothing.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache_agent.node.node import Node
from cache_agent.store.paths import StorePaths
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.values import Holder
from modelimage.digest import Digest
from modelimage.errors import InUse, NoSpace, NotFound
from tests.cache_agent.images import MemoryImage, make_record, noise
from tests.cache_agent.nodes import NodeFactory, findings, pull
from tests.examples import examples

SHARED = {"tokenizer.json": noise(1000, 1)}
SIZES = (4000, 6000, 9000, 14_000)


def library() -> dict[str, tuple[MemoryImage, Digest, dict[str, bytes]]]:
    """Images by name: weights of several sizes over one shared file."""
    made = {}
    for number, size in enumerate(SIZES):
        contents = {"model.safetensors": noise(size, number + 10)}
        record, blobs = make_record([contents, SHARED], source=f"m{number}")
        made[f"reg.test/m{number}"] = (
            MemoryImage.of([record], blobs),
            record.key,
            {**contents, **SHARED},
        )
    return made


LIBRARY = library()
NAMES = sorted(LIBRARY)


@dataclass
class Expected:
    """What must be there: leases and the models that they are for, pins, and the root that each model is on."""

    leases: dict[str, str] = field(default_factory=dict)
    pins: set[str] = field(default_factory=set)
    present: dict[str, Path] = field(default_factory=dict)

    def held(self) -> set[str]:
        return set(self.leases.values()) | self.pins

    def bytes_with(self, name: str, root: Path, *, evicting: bool) -> int:
        """What a root would hold with one more model; `evicting`: if all but what is held gave way to it."""
        held = self.held()
        stays = {
            each
            for each, home in self.present.items()
            if home == root and (each in held or not evicting)
        }
        weights = sum(len(LIBRARY[each][2]["model.safetensors"]) for each in stays | {name})
        return weights + len(SHARED["tokenizer.json"])


class StoreMachine(RuleBasedStateMachine):
    """Pulls, leases, pins, evictions, lost ledgers and restarts in any order, on one root."""

    roots = 1
    budget = 24_000

    def __init__(self) -> None:
        super().__init__()
        self.outer = ExitStack()
        base = Path(self.outer.enter_context(tempfile.TemporaryDirectory(prefix="wy-")))
        self.paths = [base / f"root-{number}" for number in range(self.roots)]
        self.expected = Expected()
        self.now = 1_800_000_000.0
        self.serial = 0
        self.open()

    def open(self) -> None:
        self.stack = ExitStack()
        self.factory = NodeFactory(self.paths[0], self.stack, now=self.now)
        limits = SpaceLimits(Amount(bytes=self.budget), Amount(bytes=0))
        images = {name: image for name, (image, _, _) in LIBRARY.items()}
        self.node: Node = self.factory(images, limits=limits, extra_roots=tuple(self.paths[1:]))

    def teardown(self) -> None:
        self.stack.close()
        try:
            assert [findings(root) for root in self.paths] == [[]] * self.roots
        finally:
            self.outer.close()

    def there(self) -> dict[str, Path]:
        """The models that the node says it has, with their roots."""
        stores = {name: self.node.store.models.store_of(LIBRARY[name][1]) for name in NAMES}
        return {name: store.paths.root for name, store in stores.items() if store is not None}

    @initialize(names=st.lists(st.sampled_from(NAMES), max_size=len(NAMES)))
    def begin(self, names: list[str]) -> None:
        for name in names:
            self.pull(name)

    @rule(name=st.sampled_from(NAMES))
    def pull(self, name: str) -> None:
        before = self.there()
        beside = [self.expected.bytes_with(name, root, evicting=False) for root in self.paths]
        instead = [self.expected.bytes_with(name, root, evicting=True) for root in self.paths]
        try:
            result = pull(self.node, f"{name}:v1")
        except NoSpace:
            assert min(instead) > self.budget, "refused though it would have fitted"
            assert self.there() == before
            return
        assert result.model.key == LIBRARY[name][1]
        now = self.there()
        assert self.expected.held() <= set(now)
        assert set(now) <= {*before, name}
        assert set(before) <= set(now) or min(beside) > self.budget, "evicted though it fitted"
        assert all(now[each] == root for each, root in before.items() if each in now), "moved"
        assert result.path.is_relative_to(now[name])
        self.expected.present = now

    @rule(name=st.sampled_from(NAMES))
    def lease(self, name: str) -> None:
        self.serial += 1
        holder = Holder.parse(f"pod:uid-{self.serial}")
        if name not in self.expected.present:
            with pytest.raises(NotFound):
                self.node.store.leases.take(LIBRARY[name][1], holder)
            return
        lease = self.node.store.leases.take(LIBRARY[name][1], holder, f"lease-{self.serial}")
        assert self.node.store.leases.take(LIBRARY[name][1], holder, lease.id) == lease
        self.expected.leases[lease.id] = name

    @precondition(lambda self: self.expected.leases)
    @rule(data=st.data())
    def lease_another_by_the_same_name(self, data: st.DataObject) -> None:
        """A name means one lease on the node, whichever roots the two models are on."""
        lease_id = data.draw(st.sampled_from(sorted(self.expected.leases)))
        home = self.expected.present[self.expected.leases[lease_id]]
        elsewhere = {name for name, root in self.expected.present.items() if root != home}
        name = data.draw(st.sampled_from(sorted(elsewhere or self.expected.present)))
        self.node.store.leases.take(LIBRARY[name][1], Holder.parse("pod:uid-again"), lease_id)
        self.expected.leases[lease_id] = name

    @precondition(lambda self: self.expected.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.expected.leases)))
        assert self.node.store.leases.release(lease_id)
        assert not self.node.store.leases.release(lease_id)
        del self.expected.leases[lease_id]

    @rule(name=st.sampled_from(NAMES), pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        if name not in self.expected.present:
            with pytest.raises(NotFound):
                self.node.store.models.pin(LIBRARY[name][1], pinned=pinned)
            return
        self.node.store.models.pin(LIBRARY[name][1], pinned=pinned)
        (self.expected.pins.add if pinned else self.expected.pins.discard)(name)

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        key = LIBRARY[name][1]
        if name not in self.expected.present:
            with pytest.raises(NotFound):
                self.node.store.models.remove(key)
        elif name in self.expected.held():
            with pytest.raises(InUse):
                self.node.store.models.remove(key)
        else:
            self.node.store.models.remove(key)
            del self.expected.present[name]

    @rule(data=st.data(), share=st.floats(0, 2))
    def collect(self, data: st.DataObject, share: float) -> None:
        store = data.draw(st.sampled_from(self.node.store.stores))
        need = int(share * self.budget)
        planned = {victim.key for victim in store.space.plan(need).victims}
        assert not planned & {LIBRARY[name][1] for name in self.expected.held()}
        store.space.gc(need)
        for name in [name for name in NAMES if LIBRARY[name][1] in planned]:
            assert self.expected.present.pop(name) == store.paths.root

    @rule(days=st.floats(-400, 400))
    def the_clock_jumps(self, days: float) -> None:
        self.now = max(1.0, self.now + days * 86400)
        self.factory.now = self.now

    @rule()
    def restart(self) -> None:
        self.stack.close()
        self.open()

    @rule(data=st.data())
    def lose_a_ledger(self, data: st.DataObject) -> None:
        """Pins come back; leases only of those who use a model now, and nobody does here."""
        root = data.draw(st.sampled_from(self.paths))
        self.stack.close()
        for path in root.glob("ledger.db*"):
            path.unlink()
        self.open()
        kept = {k: v for k, v in self.expected.leases.items() if self.expected.present[v] != root}
        self.expected.leases = kept

    @invariant()
    def what_is_expected_is_there_and_right(self) -> None:
        assert self.there() == self.expected.present
        for name, root in self.expected.present.items():
            _, key, contents = LIBRARY[name]
            for path, data in contents.items():
                assert (StorePaths(root).model(key) / path).read_bytes() == data

    @invariant()
    def leases_and_pins_are_known(self) -> None:
        names = {LIBRARY[name][1]: name for name in NAMES}
        leases = [(lease.id, names[lease.model]) for lease in self.node.store.leases.all()]
        assert leases == sorted(self.expected.leases.items())
        pins = {names[model.key] for model in self.node.store.models.all() if model.pinned}
        assert pins == self.expected.pins

    @invariant()
    def the_budgets_hold(self) -> None:
        for _, space in self.node.store.spaces():
            assert space.own <= self.budget
            assert space.promised == 0


class TwoRoots(StoreMachine):
    """The same on two roots, which are too small for all models together."""

    roots = 2
    budget = 16_000


StoreMachine.TestCase.settings = TwoRoots.TestCase.settings = settings(
    max_examples=examples(25), stateful_step_count=25, deadline=None, print_blob=True
)
TestStore = StoreMachine.TestCase
TestTwoRoots = TwoRoots.TestCase
