"""The store against a model of it: a dict of models and a byte budget. Whatever order things happen in, what is leased
or pinned stays, the budget holds, and the checker finds nothing.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache_agent.node import Node
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.values import Holder
from modelimage.digest import Digest
from modelimage.errors import InUse, NoSpace, NotFound
from tests.cache_agent.images import MemoryImage, make_record, noise
from tests.cache_agent.nodes import NodeFactory, findings, pull

SHARED = {"tokenizer.json": noise(1000, 1)}
SIZES = (4000, 6000, 9000, 14_000)
BUDGET = 24_000


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
    """What must be there."""

    leases: dict[str, str] = field(default_factory=dict)
    pins: set[str] = field(default_factory=set)
    present: set[str] = field(default_factory=set)

    def held(self) -> set[str]:
        return set(self.leases.values()) | self.pins

    def held_bytes(self) -> int:
        held = self.held()
        return sum(len(LIBRARY[name][2]["model.safetensors"]) for name in held) + (
            len(SHARED["tokenizer.json"]) if held else 0
        )


class StoreMachine(RuleBasedStateMachine):
    """Pulls, leases, pins, evictions and restarts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = ExitStack()
        self.root = Path(self.outer.enter_context(tempfile.TemporaryDirectory(prefix="wy-"))) / "s"
        self.expected = Expected()
        self.now = 1_800_000_000.0
        self.serial = 0
        self.open()

    def open(self) -> None:
        self.stack = ExitStack()
        factory = NodeFactory(self.root, self.stack, now=self.now)
        limits = SpaceLimits(Amount(bytes=BUDGET), Amount(bytes=0))
        images = {name: image for name, (image, _, _) in LIBRARY.items()}
        self.factory = factory
        self.node: Node = factory(images, limits=limits)

    def teardown(self) -> None:
        self.stack.close()
        try:
            assert findings(self.root) == []
        finally:
            self.outer.close()

    @rule(name=st.sampled_from(NAMES))
    def pull(self, name: str) -> None:
        before = {key for key in NAMES if self.node.store.model(LIBRARY[key][1])}
        try:
            result = pull(self.node, f"{name}:v1")
        except NoSpace:
            size = sum(map(len, LIBRARY[name][2].values()))
            assert self.expected.held_bytes() + size > BUDGET, "refused though it would have fitted"
            assert {k for k in NAMES if self.node.store.model(LIBRARY[k][1])} == before
            return
        assert result.model.key == LIBRARY[name][1]
        now_there = {key for key in NAMES if self.node.store.model(LIBRARY[key][1])}
        assert self.expected.held() <= now_there
        self.expected.present = now_there

    @rule(name=st.sampled_from(NAMES))
    def lease(self, name: str) -> None:
        self.serial += 1
        holder = Holder.parse(f"pod:uid-{self.serial}")
        if name not in self.expected.present:
            with pytest.raises(NotFound):
                self.node.store.lease(LIBRARY[name][1], holder)
            return
        lease = self.node.store.lease(LIBRARY[name][1], holder, f"lease-{self.serial}")
        assert self.node.store.lease(LIBRARY[name][1], holder, lease.id) == lease
        self.expected.leases[lease.id] = name

    @precondition(lambda self: self.expected.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.expected.leases)))
        assert self.node.store.release(lease_id)
        assert not self.node.store.release(lease_id)
        del self.expected.leases[lease_id]

    @rule(name=st.sampled_from(NAMES), pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        if name not in self.expected.present:
            with pytest.raises(NotFound):
                self.node.store.pin(LIBRARY[name][1], pinned=pinned)
            return
        self.node.store.pin(LIBRARY[name][1], pinned=pinned)
        (self.expected.pins.add if pinned else self.expected.pins.discard)(name)

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        key = LIBRARY[name][1]
        if name not in self.expected.present:
            with pytest.raises(NotFound):
                self.node.store.remove(key)
        elif name in self.expected.held():
            with pytest.raises(InUse):
                self.node.store.remove(key)
        else:
            self.node.store.remove(key)
            self.expected.present.discard(name)

    @rule(need=st.integers(0, 2 * BUDGET))
    def collect(self, need: int) -> None:
        plan = self.node.store.first.plan_gc(need)
        planned = {victim.key for victim in plan.victims}
        assert not planned & {LIBRARY[name][1] for name in self.expected.held()}
        self.node.store.first.gc(need)
        self.expected.present -= {name for name in NAMES if LIBRARY[name][1] in planned}

    @rule(days=st.floats(-400, 400))
    def the_clock_jumps(self, days: float) -> None:
        self.now = max(1.0, self.now + days * 86400)
        self.factory.now = self.now

    @rule()
    def restart(self) -> None:
        self.stack.close()
        self.open()

    @invariant()
    def what_is_expected_is_there_and_right(self) -> None:
        there = {name for name in NAMES if self.node.store.model(LIBRARY[name][1]) is not None}
        assert there == self.expected.present
        for name in there:
            _, key, contents = LIBRARY[name]
            for path, data in contents.items():
                assert (self.node.store.first.paths.model(key) / path).read_bytes() == data

    @invariant()
    def the_budget_holds(self) -> None:
        space = self.node.store.first.space()
        assert space.own <= BUDGET
        assert space.promised == 0


StoreMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, print_blob=True
)
TestStore = StoreMachine.TestCase
