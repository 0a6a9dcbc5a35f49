"""A removal, an eviction or a repair beside a pull, pin or lease of the same model: each step of the one is slow enough
for the whole other. In the end the model is there and whole, or it isn't there at all; what was promised holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache_agent.node.node import Node
from cache_agent.store.checker import Checker
from cache_agent.store.disk import Operation
from cache_agent.store.paths import StorePaths
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.values import Holder
from modelimage.errors import Busy, InUse, NoSpace, NotFound
from tests.cache_agent.crashes import SlowAtStep
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, make_record, noise
from tests.cache_agent.nodes import NodeFactory, findings, pull
from tests.examples import examples

SHARED = {"tokenizer.json": noise(1000, 1), "a/b/merges.txt": noise(300, 2)}
CONTENTS = [{"model.safetensors": noise(4000 + n, n + 10), **SHARED} for n in range(2)]
MADE = [
    make_record([{"model.safetensors": each["model.safetensors"]}, SHARED], source=f"m{n}")
    for n, each in enumerate(CONTENTS)
]
KEYS = [record.key for record, _ in MADE]
IMAGES = {
    f"reg.test/m{n}": MemoryImage.of([record], blobs) for n, (record, blobs) in enumerate(MADE)
}
HOLDER = Holder.parse("manual:me")


@dataclass
class Machine:
    """One node whose disk is slow at one step of one operation at a time."""

    node: Node
    observe: Callable[[Operation], None] = lambda operation: None
    errors: list[BaseException] = field(default_factory=list)

    def operations(self, number: int) -> dict[str, Callable[[], object]]:
        store, key = self.node.store.first, KEYS[number]
        digest = MADE[number][0].files[0].digest
        return {
            "pull": lambda: pull(self.node, f"reg.test/m{number}:v1"),
            "remove": lambda: store.models.remove(key),
            "remove the pinned": lambda: store.models.remove(key, unpin=True),
            "evict": lambda: store.space.gc(1 << 20),
            "collect": store.space.gc,
            "pin": lambda: store.models.pin(key, pinned=True),
            "unpin": lambda: store.models.pin(key, pinned=False),
            "lease": lambda: self.node.store.leases.take(key, HOLDER, f"lease-{number}"),
            "release": lambda: self.node.store.leases.release(f"lease-{number}"),
            "set aside": lambda: store.repairer.set_aside(digest, store.repairer.state_of(digest)),
            "link again": lambda: store.repairer.relink(digest),
            "drop the broken": store.repairer.drop_broken_models,
            "repair": lambda: self.node.check(repair=True, quick=True),
        }

    def run(self, operation: Callable[[], object]) -> bool:
        """Whether it was carried out: a refusal with its reason is right, any other error is none."""
        try:
            operation()
        except (InUse, NotFound, NoSpace, Busy):
            return False
        except BaseException as error:
            self.errors.append(error)
            raise
        return True


@contextmanager
def machine(base: Path) -> Iterator[Machine]:
    with ExitStack() as stack:
        made: list[Machine] = []
        node = NodeFactory(base / "store", stack)(
            IMAGES,
            limits=SpaceLimits(Amount(bytes=1 << 30), Amount()),
            observe=lambda operation: made[0].observe(operation) if made else None,
        )
        made.append(Machine(node))
        yield made[0]
    assert findings(base / "store") == []


def is_sound(one: Machine) -> bool:
    """Each model is whole, and nothing else is wrong."""
    store = one.node.store.first
    for model in store.models.all():
        assert files_of(model.path) == CONTENTS[KEYS.index(model.key)]
    assert Checker(store.paths, store.ledger).run() == []
    return True


class SlowDisk(RuleBasedStateMachine):
    """Two operations at once on two models that share files, at any step of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        base = Path(
            self.stack.enter_context(tempfile.TemporaryDirectory(prefix="wy-", dir="/dev/shm"))
        )
        self.machine = self.stack.enter_context(machine(base))
        self.names = sorted(self.machine.operations(0))

    def teardown(self) -> None:
        self.stack.close()

    @rule(number=st.integers(0, 1), other=st.integers(0, 1), at=st.integers(0, 25), data=st.data())
    def two_at_once(self, number: int, other: int, at: int, data: st.DataObject) -> None:
        one = self.machine
        first = data.draw(st.sampled_from([name for name in self.names if name != "pull"]))
        second = data.draw(st.sampled_from([*self.names, *["pull"] * 6]))
        slow = SlowAtStep(meanwhile=lambda: one.run(one.operations(other)[second]) and None, at=at)
        one.observe = slow
        one.run(one.operations(number)[first])
        slow.settle()
        one.observe = lambda operation: None
        assert one.errors == []

    @rule(number=st.integers(0, 1))
    def alone(self, number: int) -> None:
        pull(self.machine.node, f"reg.test/m{number}:v1")

    @invariant()
    def what_is_there_is_whole(self) -> None:
        assert is_sound(self.machine)


SlowDisk.TestCase.settings = settings(
    max_examples=examples(12), stateful_step_count=8, deadline=None, print_blob=True
)
TestSlowDisk = SlowDisk.TestCase


def test_a_model_that_is_pulled_and_pinned_while_it_is_removed_stays(memory_root: Path) -> None:
    """At each step of a removal: names that it unlinks afterwards are those of the new model."""
    steps = _removed_beside_a_pull(memory_root / "count", -1)
    for at in range(steps):
        _removed_beside_a_pull(memory_root / f"{at}", at)


def _removed_beside_a_pull(base: Path, at: int) -> int:
    with machine(base) as one:
        pull(one.node, "reg.test/m0:v1")
        promised: list[bool] = []

        def pull_and_pin() -> None:
            one.run(one.operations(0)["pull"])
            promised.append(one.run(one.operations(0)["pin"]))

        slow = one.observe = SlowAtStep(meanwhile=pull_and_pin, at=at, patience=0.05)
        one.run(one.operations(0)["remove"])
        slow.settle()
        one.observe = lambda operation: None
        assert one.errors == []
        store = one.node.store.first
        assert [m.key for m in store.models.all() if m.pinned] == KEYS[:1] * sum(promised)
        assert store.paths.pin(KEYS[0]).exists() == any(promised)
        assert is_sound(one)
    return len(slow.steps)


@pytest.mark.parametrize("at", range(-1, 4))
def test_a_model_that_is_set_aside_leaves_nothing_when_its_journal_is_collected(
    memory_root: Path, at: int
) -> None:
    """Whether its space is needed afterwards (-1), or at a step of setting it aside."""
    with machine(memory_root) as one:
        pull(one.node, "reg.test/m0:v1")
        collect, set_aside = (one.operations(0)[each] for each in ("collect", "set aside"))
        slow = one.observe = SlowAtStep(meanwhile=lambda: one.run(collect) and None, at=at)
        one.run(set_aside)
        slow.settle()
        one.observe = lambda operation: None
        one.run(collect)
        assert one.errors == []
        assert is_sound(one)


@pytest.mark.parametrize("removed", ["partial", "files"])
def test_a_pull_whose_files_are_removed_by_hand_goes_on(memory_root: Path, removed: str) -> None:
    """A name that is gone is fetched again within the pull, and isn't called a failed disk."""
    done: list[Path] = []
    with machine(memory_root / removed) as one:
        paths = StorePaths(memory_root / removed / "store")

        def remove(operation: Operation) -> None:
            named = operation.kind == ("rename" if removed == "partial" else "link")
            if named and not done and removed in str(operation.path):
                done.append(operation.path)
                with suppress(FileNotFoundError):
                    operation.path.unlink()

        one.observe = remove
        path = pull(one.node, "reg.test/m0:v1").path
        one.observe = lambda operation: None
        assert done
        assert path.is_relative_to(paths.models)
        assert files_of(path) == CONTENTS[0]
