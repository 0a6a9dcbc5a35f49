"""Models in memory: looked after, let be where they don't stay; what reading one tells of the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache_agent.prewarm.memory_tier import REST_SECONDS, Memory, read_rate
from cache_agent.residency.pages import Resident
from cache_agent.residency.warmer import Residency
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, pull

SIZE = 1 << 30


@pytest.mark.parametrize(
    ("resident", "believable", "read", "seconds", "rate"),
    [
        (0, True, SIZE, 2.0, 540_000_000),
        (SIZE // 20, True, SIZE, 2.0, 540_000_000),
        (SIZE // 2, True, SIZE, 2.0, None),  # half of it came from memory
        (0, False, SIZE, 2.0, None),  # nobody knows what came from where
        (0, True, 1 << 20, 0.001, None),  # too short to tell
        (0, True, SIZE, 0.0, None),
    ],
)
def test_only_a_long_read_of_what_was_not_in_memory_tells_the_disks_rate(
    resident: int, believable: bool, read: int, seconds: float, rate: int | None
) -> None:
    assert read_rate(Resident(SIZE, resident, believable=believable), read, seconds) == rate


@dataclass
class ScriptedWarmer:
    """Says that so much of a model is in memory, in parts of one."""

    share: float = 1.0

    def measure(self, files: Sequence[Path]) -> Resident:
        size = sum(path.stat().st_size for path in files)
        return Resident(size, int(size * self.share), believable=True)

    def warm(self, files: Sequence[Path]) -> Residency:
        return Residency(0, self.measure(files), "")


def test_what_the_kernel_threw_out_rests_and_what_nobody_wants_is_forgotten(
    open_node: NodeFactory,
) -> None:
    image, record, _ = simple_image(weights=[5000])
    node = open_node({"reg.test/m": image})
    pull(node)
    warmer, key = ScriptedWarmer(), record.key
    memory = Memory(node.store, warmer, lambda: open_node.now)  # type: ignore[arg-type]
    memory.bring(key)
    memory.look({key})
    assert (memory.warm, memory.cold()) == ({key}, frozenset())
    warmer.share = 0.9
    memory.look({key})
    assert (memory.warm, memory.cold()) == (frozenset(), {key})
    open_node.now += REST_SECONDS
    assert memory.cold() == frozenset()
    memory.bring(key)
    assert memory.cold() == {key}
    warmer.share = 1.0
    memory.bring(key)
    memory.look(())
    assert memory.warm == frozenset()
    memory.bring(key)
    node.store.models.remove(key)
    memory.look({key})
    assert memory.warm == frozenset()
    memory.bring(key)
    assert (memory.warm, memory.cold()) == (frozenset(), {key})
