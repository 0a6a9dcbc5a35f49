"""A model of thousands of small files costs a few flushes, not several for each file; so does going on after a kill."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from cache_agent.store.disk import Operation
from cache_agent.store.ledger import Ledger
from cache_agent.store.links import read_record
from modelimage import tar
from modelimage.foreign import AnyRecord
from tests.cache_agent.crashes import CountsSteps, KillsAtStep, in_child
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, make_record, noise
from tests.cache_agent.nodes import NodeFactory, pull
from tests.modelimage.foreign.images import Maker, files_tar

COUNT = 700
CONTENTS = {f"d{n % 9}/f{n:04}.bin": noise(100, n) for n in range(COUNT)}
RECORD, BLOBS = make_record([CONTENTS])
IMAGE = MemoryImage.of([RECORD], BLOBS)
FLUSHES = ("fsync", "sync_directory", "sync_filesystem")


class Transactions:
    """Counts the commits of every ledger."""

    count = 0

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        commit = Ledger._commit

        def counting(ledger: Ledger) -> None:
            self.count += 1
            commit(ledger)

        patched.setattr(Ledger, "_commit", counting)


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> Transactions:
    return Transactions(monkeypatch)


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The entries of layers that were described, in every recipe."""
    made: list[object] = []
    header = tar.header

    def noted(entry: tar.TarEntry) -> bytes:
        made.append(entry)
        return header(entry)

    monkeypatch.setattr(tar, "header", noted)
    return made


def flushes(steps: list[Operation]) -> int:
    kinds = Counter(step.kind for step in steps)
    return sum(kinds[kind] for kind in FLUSHES)


def test_small_files_are_admitted_together(memory_root: Path, transactions: Transactions) -> None:
    counter = CountsSteps()
    with ExitStack() as stack:
        node = NodeFactory(memory_root / "store", stack)({"reg.test/m": IMAGE}, observe=counter)
        counter.steps.clear()
        transactions.count = 0
        assert files_of(pull(node).path) == CONTENTS
        assert flushes(counter.steps) < COUNT // 10
        assert transactions.count < COUNT // 10
        assert node.check().findings == []


def test_going_on_after_a_kill_costs_as_little(
    memory_root: Path, transactions: Transactions, headers: list[object]
) -> None:
    counter = CountsSteps()
    with ExitStack() as stack:
        pull(NodeFactory(memory_root / "all", stack)({"reg.test/m": IMAGE}, observe=counter))
    admitted = [n for n, step in enumerate(counter.steps) if step.kind == "sync_filesystem"][2]

    def killed() -> None:
        stack = ExitStack()
        fault = KillsAtStep(at=admitted)
        pull(NodeFactory(memory_root / "store", stack)({"reg.test/m": IMAGE}, observe=fault))

    assert in_child(killed) == -signal.SIGKILL
    counter = CountsSteps()
    headers.clear()
    with ExitStack() as stack:
        node = NodeFactory(memory_root / "store", stack)({"reg.test/m": IMAGE}, observe=counter)
        assert files_of(pull(node).path) == CONTENTS
        assert flushes(counter.steps) < COUNT // 10
        assert transactions.count < COUNT // 3
        # The layer isn't described anew for each of its files that goes on.
        assert len(headers) < 10 * COUNT
        assert node.check().findings == []


def test_descriptors_are_bounded(memory_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files a model has, a pull has a part of them open."""
    monkeypatch.setattr("cache_agent.fetch.model_fetch._OPEN_FILES", 50)
    most = 0

    def count(operation: Operation) -> None:
        nonlocal most
        if operation.kind == "seal":
            most = max(most, len(list(Path("/proc/self/fd").iterdir())))

    before = len(list(Path("/proc/self/fd").iterdir()))
    with ExitStack() as stack:
        node = NodeFactory(memory_root / "store", stack)({"reg.test/m": IMAGE}, observe=count)
        assert files_of(pull(node).path) == CONTENTS
    assert most < before + 100


def test_the_record_of_a_large_cached_image_is_read_once(
    open_node: NodeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer of another image is looked for in all cached ones: not by parsing their records again."""
    maker, read = Maker(tmp_path / "layout"), Counter[Path]()
    maker.image(files_tar({f"models/{n}": noise(10, n) for n in range(50)}), tag="large")
    maker.image(*(files_tar({f"models/l{n}": noise(10, 99 + n)}) for n in range(6)), tag="other")
    node = open_node({"reg.test/m": maker.layout})
    large = pull(node, "reg.test/m:large").model.key

    def counting(path: Path) -> AnyRecord:
        read[path] += 1
        return read_record(path)

    for place in ("store.models", "fetch.foreign.reusable_layers"):
        monkeypatch.setattr(f"cache_agent.{place}.read_record", counting)
    pull(node, "reg.test/m:other")
    assert read[node.store.first.paths.record(large)] == 1
