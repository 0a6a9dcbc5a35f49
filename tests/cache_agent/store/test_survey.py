"""A store's space is never measured between two states: each byte counts once at any moment.

Not while a model is half removed, whose bytes would neither be free nor evictable, and not while a file is allocated
and still reserved, whose bytes would count twice.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cache_agent.store import disk
from cache_agent.store.budget import StoreSpace
from cache_agent.store.disk import Disk, Operation
from cache_agent.store.policy import evictable
from cache_agent.store.reservations import Reservation
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.errors import NoSpace, Unreachable
from modelimage.foreign import Packing
from tests.cache_agent.crashes import in_child
from tests.cache_agent.faults import BreaksAfter
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import noise, simple_image
from tests.cache_agent.nodes import NodeFactory, pull
from tests.modelimage.foreign.images import Maker, files_tar

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


def store_a_byte(reservation: Reservation) -> None:
    with reservation.storing() as stored:
        stored(1)


def test_pulls_go_on_while_a_model_is_removed(open_node: NodeFactory) -> None:
    """Its files may take long to unlink."""
    running: list[Reservation] = []
    left: list[int] = []

    def look(operation: Operation) -> None:
        if running:
            storing = threading.Thread(target=store_a_byte, args=(running[0],))
            storing.start()
            storing.join()
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
    assert reserved < len(sums)
    assert set(sums[reserved:]) == {whole}


def watch_storing(
    monkeypatch: pytest.MonkeyPatch,
    between: Callable[[], None],
    after: Callable[[], None] = lambda: None,
) -> None:
    """Has `between` called whenever a file was allocated and its bytes aren't taken off the reservation yet."""
    storing = Reservation.storing

    @contextmanager
    def watched(reservation: Reservation) -> Iterator[Callable[[int], None]]:
        with storing(reservation) as stored:

            def told(size: int) -> None:
                between()
                stored(size)

            yield told
        after()

    monkeypatch.setattr(Reservation, "storing", watched)


class Surveys:
    """Measures a store between the allocation of a file and its account, and right after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.space: StoreSpace | None = None
        self.between: list[int] = []
        self.after: list[int] = []
        self._asked = threading.Thread()
        watch_storing(monkeypatch, self._ask, self._settle)

    def _ask(self) -> None:
        self._asked = threading.Thread(target=lambda: self.between.append(self.sum()))
        self._asked.start()
        # It waits for the account, or answers of this moment.
        self._asked.join(0.05)

    def _settle(self) -> None:
        self._asked.join()
        self.after.append(self.sum())

    def sum(self) -> int:
        """The bytes that are stored or reserved."""
        assert self.space is not None
        view, _ = self.space.survey()
        return view.own + view.promised

    def check(self, whole: int | None = None) -> None:
        """Each survey in between saw what the one after it saw: with `whole`, exactly these bytes."""
        assert self.between
        assert self.between == self.after
        assert whole is None or set(self.between) == {whole}
        self.between, self.after = [], []


def test_no_byte_of_a_pull_counts_twice(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that goes on where another broke off, and of a repair."""
    image, record, _ = simple_image(weights=[150_000, 90_000])
    large = max(record.files, key=lambda file: file.size)
    surveys = Surveys(monkeypatch)
    node = open_node({"reg.test/m": BreaksAfter(image, large.layer, 1000)}, limits=ROOM)
    surveys.space = space = node.store.first.space
    with pytest.raises(Unreachable):
        pull(node)
    whole = sum({file.digest: file.size for file in record.files}.values())
    surveys.check(whole)
    open_node.images["reg.test/m"] = image
    pull(node)
    surveys.check(whole)
    assert (space.view().own, space.view().promised) == (whole, 0)
    path = node.store.first.paths.file(large.digest)
    path.chmod(0o644)
    path.write_bytes(b"damage")
    assert node.repairer.repair(node.store.first, large.digest)
    surveys.check(whole + large.size)
    assert (space.view().own, space.view().promised) == (whole, 0)


@pytest.mark.parametrize("packing", [Packing.TAR, Packing.TAR_ZSTD], ids=["ranges", "stream"])
def test_no_byte_of_a_foreign_image_counts_twice(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packing: Packing
) -> None:
    maker = Maker(tmp_path / "layout")
    files = {"models/a.safetensors": noise(200_000), "models/b.safetensors": noise(90_000, 1)}
    maker.image(files_tar(files), packing=packing)
    surveys = Surveys(monkeypatch)
    node = open_node({"reg.test/m": maker.layout}, limits=ROOM)
    surveys.space = node.store.first.space
    pull(node, "reg.test/m:latest")
    surveys.check()


def test_the_bytes_of_a_pull_that_was_killed_count_once(
    open_node: NodeFactory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed when a file was allocated and not taken off the reservation yet, which is gone with the process."""
    image, record, contents = simple_image(weights=[150_000, 90_000])

    def killed() -> None:
        watch_storing(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
        with ExitStack() as stack:
            pull(NodeFactory(root, stack)({"reg.test/m": image}, limits=ROOM))

    assert in_child(killed) == -signal.SIGKILL
    surveys = Surveys(monkeypatch)
    node = open_node({"reg.test/m": image}, limits=ROOM)
    surveys.space = space = node.store.first.space
    (left,) = space.paths.partial.glob("*.data")
    assert (space.view().own, space.view().promised) == (left.stat().st_size, 0)
    assert left.stat().st_size in {file.size for file in record.files}
    assert files_of(pull(node).path) == contents
    surveys.check(sum({file.digest: file.size for file in record.files}.values()))


@pytest.mark.parametrize("there", [0, 70_000])
def test_a_file_that_found_no_room_counts_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int
) -> None:
    """Else it would count as stored with bytes that it has no blocks for, and what came of it would fill the disk."""
    path = tmp_path / "partial"
    path.write_bytes(noise(there))

    def half(fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, there + (size - there) // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "_fallocate", half)
    with pytest.raises(NoSpace):
        Disk().open_partial(path, 500_000)
    assert path.read_bytes() == noise(there)
