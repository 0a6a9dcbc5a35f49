"""A disk that fails under the ledger alone, at any step: nothing is half-done, and on it goes once the disk works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cache_agent.errors import DiskFailed
from cache_agent.node.node import Node
from cache_agent.store.values import Holder, Lease
from modelimage.digest import Digest
from modelimage.errors import NoSpace
from tests.cache_agent.crashes import CountsSteps, LedgerFailsAtStep, steps_of_a_pull
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, simple_image
from tests.cache_agent.nodes import NodeFactory, findings, pull

ME = Holder.parse("manual:me")
LOG_BYTES = 64 << 10


@pytest.fixture
def disk() -> Iterator[LedgerFailsAtStep]:
    fault = LedgerFailsAtStep()
    yield fault
    fault.repair()


def open_with_log(root: Path, image: MemoryImage, stack: ExitStack, fault: CountsSteps) -> Node:
    """A node whose ledger's log is longer than any file of the model."""
    node = NodeFactory(root, stack)({"reg.test/m": image}, observe=fault)
    ledger, log = node.store.first.ledger, log_of(root)
    while log.stat().st_size < LOG_BYTES:
        ledger.put_lease(Lease("long", Digest.of(b"none"), ME, 0.0))
        ledger.drop_lease("long")
    return node


def log_of(root: Path) -> Path:
    return root / "ledger.db-wal"


def test_a_ledger_that_cannot_be_written_at_any_step_of_a_pull(
    tmp_path: Path, disk: LedgerFailsAtStep
) -> None:
    image, _, contents = simple_image(weights=[9000])
    count = tmp_path / "count"
    steps = steps_of_a_pull(lambda stack, counter: open_with_log(count, image, stack, counter))
    failed = 0
    for at in steps:
        root = tmp_path / f"{at}"
        with ExitStack() as stack:
            fault = LedgerFailsAtStep(log=log_of(root), at=at)
            node = open_with_log(root, image, stack, fault)
            try:
                pull(node)
            except (DiskFailed, NoSpace):  # the limit on file sizes meets partials too
                failed += 1
            disk.repair()
            assert all(files_of(model.path) == contents for model in node.store.models.all())
            assert files_of(pull(node).path) == contents
        assert findings(root) == []
    assert failed > len(steps) // 2


def test_a_lease_that_the_ledger_cannot_note_was_not_given(
    tmp_path: Path, disk: LedgerFailsAtStep
) -> None:
    image, record, _ = simple_image(weights=[5000])
    root = tmp_path / "store"
    disk.log = log_of(root)
    with ExitStack() as stack:
        node = open_with_log(root, image, stack, CountsSteps())
        pull(node)
        node.store.leases.take(record.key, ME, "before")
        disk.fail()
        with pytest.raises(DiskFailed):
            node.store.leases.take(record.key, ME, "meanwhile")
        with pytest.raises(DiskFailed):
            node.store.leases.release("before")
        assert {lease.id for lease in node.store.leases.all()} == {"before"}
        disk.repair()
        node.store.leases.take(record.key, ME, "afterwards")
    with ExitStack() as stack:
        node = NodeFactory(root, stack)({"reg.test/m": image})
        assert {lease.id for lease in node.store.leases.all()} == {"before", "afterwards"}
    assert findings(root) == []
