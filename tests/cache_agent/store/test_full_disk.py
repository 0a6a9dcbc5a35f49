"""A real filesystem that another program fills at any step of a pull: files and ledger alike have no room from there.

The pull is refused as `NoSpace` or ends well; with room again the store is sound and goes on.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache_agent.node.node import Node
from cache_agent.store.disk import Operation
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.values import Holder
from modelimage.errors import NoSpace
from tests.cache_agent.crashes import CountsSteps, steps_of_a_pull
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, simple_image
from tests.cache_agent.nodes import NodeFactory, findings, pull
from tests.servers.process import program

pytestmark = pytest.mark.servers

LIMITS = SpaceLimits(Amount(bytes=1 << 20), Amount(bytes=0))


@dataclass
class FillsDiskAtStep(CountsSteps):
    """Another program takes all room of a filesystem just before a store's step number `at`, and keeps it."""

    filler: Path = Path()
    at: int = -1

    def __call__(self, operation: Operation) -> None:
        super().__call__(operation)
        if len(self.steps) == self.at + 1:
            fill(self.filler)


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.fixture
def small_disk(tmp_root: Path) -> Iterator[Path]:
    """A filesystem of 2 MiB."""
    place = tmp_root / "disk"
    place.mkdir()
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run([program("umount"), place], check=True)


def open_on(root: Path, image: MemoryImage, stack: ExitStack, fault: CountsSteps) -> Node:
    return NodeFactory(root, stack)({"reg.test/m": image}, limits=LIMITS, observe=fault)


def test_a_disk_that_others_fill_at_any_step(small_disk: Path) -> None:
    image, _, contents = simple_image(weights=[70_000])
    count = small_disk / "count"
    steps = steps_of_a_pull(lambda stack, counter: open_on(count, image, stack, counter))
    shutil.rmtree(count)
    refused = 0
    for at in steps:
        root, filler = small_disk / "store", small_disk / "filler"
        with ExitStack() as stack:
            try:
                pull(open_on(root, image, stack, FillsDiskAtStep(filler=filler, at=at)))
            except NoSpace:
                refused += 1
        filler.unlink()
        with ExitStack() as stack:
            node = open_on(root, image, stack, CountsSteps())
            assert all(files_of(model.path) == contents for model in node.store.models.all())
            assert files_of(pull(node).path) == contents
        assert findings(root) == []
        shutil.rmtree(root)
    assert refused > len(steps) // 2


def test_a_lease_that_finds_no_room_was_not_given(small_disk: Path) -> None:
    image, record, _ = simple_image(weights=[5000])
    root, filler = small_disk / "store", small_disk / "filler"
    given: set[str] = set()
    with ExitStack() as stack:
        node = open_on(root, image, stack, CountsSteps())
        pull(node)
        fill(filler)
        with suppress(NoSpace):
            for number in range(10_000):  # the ledger has some room of its own
                name = f"lease-{number}"
                node.store.leases.take(record.key, Holder.parse("manual:me"), name)
                given.add(name)
        assert len(given) < 10_000
        assert {lease.id for lease in node.store.leases.all()} == given
        filler.unlink()
        node.store.leases.take(record.key, Holder.parse("manual:me"), "afterwards")
    with ExitStack() as stack:
        node = open_on(root, image, stack, CountsSteps())
        assert {lease.id for lease in node.store.leases.all()} == {*given, "afterwards"}
    assert findings(root) == []


def test_a_store_on_a_full_disk_opens_and_evicts(small_disk: Path) -> None:
    """The ledger has room that nobody else can take: without it, not even an eviction could be noted."""
    images = {f"reg.test/{n}": simple_image(weights=[50_000], seed=n)[0] for n in (1, 2)}
    root, filler = small_disk / "store", small_disk / "filler"
    with ExitStack() as stack:
        pull(NodeFactory(root, stack)(images, limits=LIMITS), "reg.test/1:v1")
    fill(filler)
    with ExitStack() as stack:
        node = NodeFactory(root, stack)(images, limits=LIMITS)
        fill(filler)
        for model in node.store.models.all():
            node.store.models.remove(model.key)
        assert node.store.models.all() == []
        filler.unlink()
        pull(node, "reg.test/2:v1")
    assert findings(root) == []
