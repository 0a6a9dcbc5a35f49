"""A store after anything that can happen to it at any step: killed, without power, full, or with a failing disk.

After each: opening settles it, the checker finds nothing, no wrong byte is visible, and the work can go on.
"""

from __future__ import annotations

import errno
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cache_agent.node.node import Node
from cache_agent.store.disk import Observer
from cache_agent.store.paths import StorePaths
from modelimage.digest import Digest
from modelimage.errors import NoSpace, NotWritable, WeightyardError
from tests.cache_agent.crashes import CountsSteps, FailsAtStep, KillsAtStep, PowerLoss, in_child
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, simple_image
from tests.cache_agent.nodes import NodeFactory, findings, pull

WEIGHTS = [70_000, 5000]
pytestmark = pytest.mark.slow


@pytest.fixture
def image() -> tuple[MemoryImage, dict[str, bytes]]:
    made, _, contents = simple_image(weights=WEIGHTS)
    return made, contents


def session(
    root: Path, image: MemoryImage, observe: Observer, work: Callable[[Node], None]
) -> None:
    """Open a node, do the work, close."""
    with ExitStack() as stack:
        work(NodeFactory(root, stack)({"reg.test/m": image}, observe=observe))


def pulls(node: Node) -> None:
    pull(node)


def pulls_and_removes(node: Node) -> None:
    model = pull(node).model
    node.store.models.remove(model.key)


def pulls_and_repairs(node: Node) -> None:
    model = pull(node).model
    record_file = max(node.store.first.ledger.model_files(model.key), key=lambda f: f.size)
    path = node.store.first.paths.file(record_file.digest)
    damage(path, 100)
    node.check(repair=True)


WORK = {"pull": pulls, "pull and remove": pulls_and_removes, "pull and repair": pulls_and_repairs}


def damage(path: Path, offset: int) -> None:
    """Flip a bit at rest."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    path.chmod(0o444)


def steps_of(root: Path, image: MemoryImage, work: Callable[[Node], None]) -> int:
    counter = CountsSteps()
    session(root, image, counter, work)
    return len(counter.steps)


def steps_until_pulled(root: Path, image: MemoryImage) -> int:
    """The steps of opening and of a pull: what follows is tried from here on, as a pull has a test of its own."""
    counter = CountsSteps()
    reached: list[int] = []

    def work(node: Node) -> None:
        pull(node)
        reached.append(len(counter.steps))

    session(root, image, counter, work)
    return reached[0]


def admitted(paths: StorePaths) -> set[str]:
    """The sha256 of the files that the ledger says came from here. Of what was landing just then it says nothing."""
    if not paths.ledger.exists():
        return set()
    with TemporaryDirectory() as copy:
        # Looking at the ledger itself would mend what the node is to mend.
        for path in paths.root.glob(f"{paths.ledger.name}*"):
            shutil.copy(path, copy)
        with closing(sqlite3.connect(Path(copy) / paths.ledger.name)) as ledger:
            made = ledger.execute("SELECT 1 FROM sqlite_master WHERE name = 'proofs'").fetchone()
            found = ledger.execute("SELECT sha256 FROM proofs") if made else ()
            return {str(sha256) for (sha256,) in found if paths.file(Digest(sha256)).exists()}


def assert_sound_and_usable(root: Path, image: MemoryImage, contents: dict[str, bytes]) -> None:
    """Nothing wrong is visible right after the crash, and a pull makes it whole with what it had."""
    paths = StorePaths(root)
    was_pulling = any(paths.partial.glob("*.json"))
    known = admitted(paths)
    had = [data for data in contents.values() if Digest.of(data).hex in known]
    with ExitStack() as stack:
        node = NodeFactory(root, stack)({"reg.test/m": image}, boot="another-boot")
        for model in node.store.models.all():
            assert files_of(model.path) == contents
        assert node.check().findings == []
        image.requests.clear()
        assert files_of(pull(node).path) == contents
        if was_pulling:
            # What was whole isn't fetched again, but for a byte of a layer that shows the caller's right to it.
            missing = sum(map(len, contents.values())) - sum(map(len, had))
            assert image.fetched() <= missing + len(had)
    assert findings(root) == []


@pytest.mark.parametrize("name", ["pull", "pull and remove"])
def test_killed_at_every_step(
    memory_root: Path, image: tuple[MemoryImage, dict[str, bytes]], name: str
) -> None:
    made, contents = image
    first = 0 if name == "pull" else steps_until_pulled(memory_root / "pulled", made)
    total = steps_of(memory_root / "count", made, WORK[name])
    assert total > 40
    assert total > first
    for at in range(first, total):
        root = memory_root / f"killed-{at}"
        status = in_child(partial(session, root, made, KillsAtStep(at=at), WORK[name]))
        assert status == -signal.SIGKILL, f"step {at} wasn't reached"
        assert_sound_and_usable(root, made, contents)


def test_killed_at_every_step_of_a_repair(
    memory_root: Path, image: tuple[MemoryImage, dict[str, bytes]]
) -> None:
    made, contents = image
    first = steps_until_pulled(memory_root / "pulled", made)
    total = steps_of(memory_root / "count", made, pulls_and_repairs)
    for at in range(first, total):
        root = memory_root / f"killed-{at}"
        status = in_child(partial(session, root, made, KillsAtStep(at=at), pulls_and_repairs))
        assert status == -signal.SIGKILL, f"step {at} wasn't reached"
        # The damage itself may still be there: what a crash in a repair must not do is hide it.
        with ExitStack() as stack:
            node = NodeFactory(root, stack)({"reg.test/m": made})
            node.check(repair=True)
            assert node.check().findings == []
            assert files_of(pull(node).path) == contents
        assert findings(root) == []


@pytest.mark.parametrize("name", ["pull", "pull and remove"])
def test_without_power_at_every_step(
    memory_root: Path, image: tuple[MemoryImage, dict[str, bytes]], name: str
) -> None:
    made, contents = image
    root, copies = memory_root / "store", memory_root / "copies"
    root.mkdir()
    fault = PowerLoss(root=root, copies=copies)
    session(root, made, fault, WORK[name])
    kept = sorted(copies.iterdir())
    assert len(kept) > 40
    for copy in kept:
        assert_sound_and_usable(copy, made, contents)
    with ExitStack() as stack:
        node = NodeFactory(fault.at_the_end(), stack)({"reg.test/m": made}, boot="another-boot")
        told = {"pull": [contents], "pull and remove": []}[name]
        assert [files_of(model.path) for model in node.store.models.all()] == told, "told, yet lost"


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, NotWritable)],
    ids=["full", "over quota", "failing"],
)
def test_a_disk_that_is_full_or_fails_at_every_step(
    memory_root: Path,
    image: tuple[MemoryImage, dict[str, bytes]],
    code: int,
    error: type[WeightyardError],
) -> None:
    made, contents = image
    total = steps_of(memory_root / "count", made, pulls)
    for at in range(total):
        root = memory_root / f"failed-{at}"
        fault = FailsAtStep(at=at, errno=code)
        with suppress(error):
            session(root, made, fault, pulls)
        assert len(fault.steps) > at
        assert_sound_and_usable(root, made, contents)


def test_a_full_disk_leaves_the_running_node_usable(
    memory_root: Path, image: tuple[MemoryImage, dict[str, bytes]]
) -> None:
    made, contents = image
    opening = CountsSteps()
    session(memory_root / "open", made, opening, lambda node: None)
    total = steps_of(memory_root / "count", made, pulls)
    for at in range(len(opening.steps), total):
        root = memory_root / f"failed-{at}"

        def pulls_twice(node: Node) -> None:
            with pytest.raises(NoSpace):
                pull(node)
            assert files_of(pull(node).path) == contents

        session(root, made, FailsAtStep(at=at, errno=errno.ENOSPC), pulls_twice)
        assert findings(root) == []


def test_a_disk_that_fails_at_any_step_of_a_removal_leaves_the_running_node_usable(
    memory_root: Path, image: tuple[MemoryImage, dict[str, bytes]]
) -> None:
    made, contents = image
    pulling = steps_of(memory_root / "pull", made, pulls)
    total = steps_of(memory_root / "count", made, pulls_and_removes)
    assert total - pulling > 5
    for at in range(pulling, total):
        root = memory_root / f"failed-{at}"

        def goes_on(node: Node) -> None:
            with suppress(NotWritable):
                pulls_and_removes(node)
            assert files_of(pull(node).path) == contents

        session(root, made, FailsAtStep(at=at, errno=errno.EIO), goes_on)
        assert_sound_and_usable(root, made, contents)
