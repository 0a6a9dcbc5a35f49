"""Damage to a store at rest, one kind at a time: what has a copy or a source is mended, what was promised stays."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from cache_agent.store.disk import Disk
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import Holder, HolderKind, Use
from modelimage.digest import Digest
from modelimage.errors import Busy, NotWritable
from tests.cache_agent.crashes import in_child
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, findings, pull

IMAGE, RECORD, CONTENTS = simple_image(weights=[90_000, 5000])
KEY = RECORD.key
CONFIG = next(file for file in RECORD.files if file.path == "config.json")
WEIGHT = max(RECORD.files, key=lambda file: file.size)
POD = Holder(HolderKind.POD, "a-pod")

Damage = Callable[[StorePaths], object]


def replaced_by_link(path: Path) -> None:
    """Move a file or directory away, and leave a link to it."""
    store = next(each for each in path.parents if each.name == "store")
    aside = store.with_name(f"elsewhere-{path.name}")
    path.rename(aside)
    path.symlink_to(aside)


def replaced_by_directory(path: Path) -> None:
    path.unlink()
    (path / "within").mkdir(parents=True)


def overwritten(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def copied(path: Path) -> None:
    """The same bytes in another inode."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o444)


def left(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"left")


DAMAGES: dict[str, Damage] = {
    "file missing in the model": lambda p: (p.model(KEY) / "config.json").unlink(),
    "file of the model is a link": lambda p: replaced_by_link(p.model(KEY) / "config.json"),
    "file of the model is a copy": lambda p: copied(p.model(KEY) / "config.json"),
    "file of the model is a directory": lambda p: replaced_by_directory(
        p.model(KEY) / "config.json"
    ),
    "directory of the model is a link": lambda p: replaced_by_link(p.model(KEY) / "copy"),
    "directory of the model is missing": lambda p: shutil.rmtree(p.model(KEY) / "copy"),
    "something else in the model": lambda p: left(p.model(KEY) / "copy" / "else"),
    "the model is a link": lambda p: replaced_by_link(p.model(KEY)),
    "the model is missing": lambda p: shutil.rmtree(p.model(KEY)),
    "record missing in the model": lambda p: (p.model(KEY) / "weightyard.json").unlink(),
    "record missing in the store": lambda p: p.record(KEY).unlink(),
    "record overwritten": lambda p: overwritten(p.record(KEY), b"{"),
    "record cut off": lambda p: overwritten(p.record(KEY), b""),
    "both records missing": lambda p: (
        p.record(KEY).unlink(),
        (p.model(KEY) / "weightyard.json").unlink(),
    ),
    "record is a directory": lambda p: replaced_by_directory(p.record(KEY)),
    "origin missing": lambda p: p.origin(KEY).unlink(),
    "origin overwritten": lambda p: overwritten(p.origin(KEY), b"no JSON"),
    "origin is a link": lambda p: replaced_by_link(p.origin(KEY)),
    "file missing": lambda p: p.file(WEIGHT.digest).unlink(),
    "file missing everywhere": lambda p: (
        p.file(WEIGHT.digest).unlink(),
        (p.model(KEY) / WEIGHT.path).unlink(),
    ),
    "file is a link": lambda p: replaced_by_link(p.file(WEIGHT.digest)),
    "file is a directory": lambda p: replaced_by_directory(p.file(WEIGHT.digest)),
    "file cut off": lambda p: overwritten(p.file(WEIGHT.digest), b"short"),
    "prefix is a link": lambda p: replaced_by_link(p.file(WEIGHT.digest).parent),
    "pin is missing": lambda p: p.pin(KEY).unlink(),
    "pin is a directory": lambda p: replaced_by_directory(p.pin(KEY)),
    "pin of no model": lambda p: left(p.pin(Digest("ab" * 32))),
    "what is no pin": lambda p: left(p.pins / "what"),
    "half-written pin": lambda p: left(p.pins / f".{KEY.hex}.tmp"),
    "journal is a directory": lambda p: (p.journal(KEY) / "x").mkdir(parents=True),
    "partial is a link": lambda p: p.partial_data(KEY).symlink_to(p.ledger),
    "trash is a link": lambda p: replaced_by_link(p.trash),
    "partial/ is a link": lambda p: replaced_by_link(p.partial),
    "models/ is a link": lambda p: replaced_by_link(p.models),
    "pins/ is a link": lambda p: replaced_by_link(p.pins),
    "files/ is a link": lambda p: replaced_by_link(p.files),
    "documents/ is a link": lambda p: replaced_by_link(p.documents),
    "repositories/ is a file": lambda p: (shutil.rmtree(p.repositories), left(p.repositories)),
    "a document is a directory": lambda p: (p.documents / "ab" / "c").mkdir(parents=True),
    "a file and its record overwritten": lambda p: (
        overwritten(p.record(KEY), b"{"),
        overwritten(p.file(CONFIG.digest), b"{'seed': 1}"),
    ),
    "the socket is a directory": lambda p: (p.socket / "within").mkdir(parents=True),
}
# What is only known from one place: with it, the promise is gone too.
UNPINNED = {"pins/ is a link"}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("when", ["at rest", "while open"])
def test_damage_is_mended_and_what_was_promised_stays(
    root: Path, memory_root: Path, kind: str, when: str
) -> None:
    paths = StorePaths(memory_root / "store")
    with ExitStack() as stack:
        node = NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
        pull(node)
        node.store.models.pin(KEY, pinned=True)
        node.store.leases.take(KEY, POD, "lease")
        if when == "at rest":
            stack.close()
        DAMAGES[kind](paths)
        if when == "at rest":
            node = NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
        view = node.check(repair=True)
        assert [finding for finding in view.findings if not finding.repaired] == []
        assert node.check().findings == []
        (model,) = node.store.models.all()
        assert model.pinned
        assert [lease.holder for lease in model.leases] == [POD]
        assert files_of(model.path) == CONTENTS
        assert files_of(pull(node).path) == CONTENTS
    assert findings(paths.root) == []


@pytest.mark.parametrize(
    "kind", [kind for kind in DAMAGES if "of the model" in kind or "in the model" in kind]
)
def test_a_pull_is_done_only_when_the_directory_is_whole(memory_root: Path, kind: str) -> None:
    paths = StorePaths(memory_root / "store")
    with ExitStack() as stack:
        node = NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
        path = pull(node).path
        DAMAGES[kind](paths)
        assert files_of(pull(node).path) == CONTENTS
        assert not any(each.is_symlink() for each in path.rglob("*"))
        assert node.check().findings == []


def test_a_start_never_follows_a_link(memory_root: Path) -> None:
    """What a link in the place of a directory leads to is left alone."""
    paths = StorePaths(memory_root / "store")
    mine = memory_root / "mine"
    with ExitStack() as stack:
        pull(NodeFactory(paths.root, stack)({"reg.test/m": IMAGE}))
    for directory in (paths.trash, paths.partial):
        shutil.rmtree(directory)
        (mine / directory.name).mkdir(parents=True)
        (mine / directory.name / "thesis.data").write_bytes(b"mine")
        directory.symlink_to(mine / directory.name)
    with ExitStack() as stack:
        node = NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
        node.store.first.space.gc()
        assert files_of(pull(node).path) == CONTENTS
    assert sorted(each.name for each in mine.rglob("*.data")) == ["thesis.data"] * 2


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_what_is_no_lock_is_moved_out_of_its_place(memory_root: Path, kind: str) -> None:
    paths = StorePaths(memory_root / "store")
    with ExitStack() as stack:
        pull(NodeFactory(paths.root, stack)({"reg.test/m": IMAGE}))
    paths.lock.unlink()
    make: dict[str, Callable[[], object]] = {
        "link": lambda: paths.lock.symlink_to(memory_root / "elsewhere"),
        "directory": lambda: (paths.lock / "within").mkdir(parents=True),
        "pipe": lambda: os.mkfifo(paths.lock),
    }
    make[kind]()
    with ExitStack() as stack:
        node = NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
        assert files_of(pull(node).path) == CONTENTS
        with pytest.raises(Busy):
            NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
    assert not (memory_root / "elsewhere").exists()


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


IN_PLACE: dict[str, Callable[[Path], object]] = {
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("/does/not/exist"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "directory": lambda path: (path / "within").mkdir(parents=True),
    "pipe": os.mkfifo,
    "socket": a_socket,
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_whatever_is_in_the_place_of_a_file_of_the_root_the_store_opens_and_is_whole(
    memory_root: Path, kind: str
) -> None:
    paths = StorePaths(memory_root / "store")
    with ExitStack() as stack:
        node = NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
        pull(node)
        node.store.models.pin(KEY, pinned=True)
        names = sorted(path.name for path in paths.root.iterdir() if path.is_file())
    assert {"ledger.db", "ledger.generation", "lock"} <= set(names)
    for name in names:
        path = paths.root / name
        path.unlink(missing_ok=True)
        IN_PLACE[kind](path)
        with ExitStack() as stack:
            node = NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
            assert [each.pinned for each in node.store.models.all()] == [True], name
            assert node.check(repair=True).findings == [], name
            assert files_of(pull(node).path) == CONTENTS


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


LOSSES: dict[str, Damage] = {
    "log deleted": lambda p: wal(p).unlink(),
    "log and index deleted": lambda p: (
        wal(p).unlink(),
        p.ledger.with_name("ledger.db-shm").unlink(missing_ok=True),
    ),
    "log emptied": lambda p: os.truncate(wal(p), 0),
    "log cut": lambda p: cut(wal(p)),
    "log flipped": lambda p: flipped(wal(p)),
    "database emptied": lambda p: (os.truncate(p.ledger, 0), wal(p).unlink()),
    "database and log replaced": lambda p: (left(p.ledger), left(wal(p))),
    "everything deleted": lambda p: [each.unlink() for each in p.root.glob("ledger.*")],
    "database is a link": lambda p: (p.ledger.unlink(), p.ledger.symlink_to("/dev/null")),
    "database is a directory": lambda p: (p.ledger.unlink(), p.ledger.mkdir()),
}


def wal(paths: StorePaths) -> Path:
    return paths.ledger.with_name("ledger.db-wal")


@pytest.mark.parametrize("kind", LOSSES)
def test_a_ledger_that_lost_its_tail_is_rebuilt(
    memory_root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent is killed with all that it promised in the log, which is then damaged."""
    paths = StorePaths(memory_root / "store")
    other, second, _ = simple_image(weights=[7000], seed=5)
    images = {"reg.test/m": IMAGE, "reg.test/o": other}

    def promise_and_die() -> None:
        stack = ExitStack()
        node = NodeFactory(paths.root, stack)(images)
        pull(node)
        pull(node, "reg.test/o:v1")
        node.store.models.pin(second.key, pinned=True)
        node.store.models.pin(KEY, pinned=True)
        node.store.leases.take(KEY, POD, "lease")
        # The last word counts.
        node.store.models.pin(second.key, pinned=False)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(promise_and_die) == -signal.SIGKILL
    LOSSES[kind](paths)
    monkeypatch.setattr(
        "cache_agent.daemon.store_setup.users_of", lambda models, machine: [Use(KEY, POD)]
    )
    with ExitStack() as stack:
        node = NodeFactory(paths.root, stack)(images)
        assert node.store.first.ledger_was_lost
        assert {m.key: m.pinned for m in node.store.models.all()} == {KEY: True, second.key: False}
        assert [lease.holder for lease in node.store.leases.all()] == [POD]
        assert node.check().findings == []
        assert node.store.models.resolved("reg.test/m:v1", None) is not None
    with ExitStack() as stack:
        node = NodeFactory(paths.root, stack)(images)
        assert not node.store.first.ledger_was_lost
        assert [lease.holder for lease in node.store.leases.all()] == [POD]


@pytest.mark.parametrize("table", ["files", "models", "model_files", "images", "proofs", "leases"])
def test_a_missing_table_is_filled_again(
    memory_root: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = StorePaths(memory_root / "store")
    with ExitStack() as stack:
        node = NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
        pull(node)
        node.store.models.pin(KEY, pinned=True)
        node.store.leases.take(KEY, POD, "lease")
    database = sqlite3.connect(paths.ledger)
    database.execute(f"DROP TABLE {table}")
    database.commit()
    database.close()
    monkeypatch.setattr(
        "cache_agent.daemon.store_setup.users_of", lambda models, machine: [Use(KEY, POD)]
    )
    with ExitStack() as stack:
        node = NodeFactory(paths.root, stack)({"reg.test/m": IMAGE})
        (model,) = node.store.models.all()
        assert model.pinned
        assert [lease.holder for lease in model.leases] == [POD]
        assert node.store.models.images_of(KEY) == ["reg.test/m:v1"]
        assert all(node.store.files.is_authorized("reg.test/m", file) for file in RECORD.files)
        assert node.check().findings == []


def test_the_ledger_is_private(memory_root: Path) -> None:
    paths = StorePaths(memory_root / "store")
    with ExitStack() as stack:
        pull(NodeFactory(paths.root, stack)({"reg.test/m": IMAGE}))
        for path in paths.root.glob("ledger.*"):
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("write", [Disk.write_small, Disk.write_durable])
def test_a_link_at_a_temporary_name_redirects_no_write(
    tmp_path: Path, write: Callable[[Disk, Path, bytes], None]
) -> None:
    precious, target = tmp_path / "precious", tmp_path / "file"
    precious.write_bytes(b"precious")
    for name in (f".{target.name}.tmp", f".{target.name}.{threading.get_ident()}.tmp"):
        (tmp_path / name).symlink_to(precious)
    with pytest.raises(NotWritable):
        write(Disk(), target, b"other")
    assert precious.read_bytes() == b"precious"
