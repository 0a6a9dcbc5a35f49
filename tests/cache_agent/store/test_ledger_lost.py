"""What only the ledger knows comes back when it is lost: pins from their files, leases from who uses what; and leases
of many threads share their commits."""

from __future__ import annotations

import mmap
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from cache_agent.leases.holders import Machine
from cache_agent.leases.usage import Mount, mounted, parse_mountinfo, users_of
from cache_agent.mounter.manual import lease_id
from cache_agent.node.node import Node
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.values import Holder, HolderKind, Use
from modelimage.digest import Digest
from modelimage.errors import InUse, NoSpace
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, findings, pull

KEY = Digest("ab" * 32)
READER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
os.close(fd)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server(open_node: NodeFactory) -> Iterator[tuple[Node, int]]:
    """A node whose model another process has mapped."""
    image, _, _ = simple_image(weights=[9000])
    node = open_node({"reg.test/m": image})
    path = pull(node).path / "model-00000.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        yield node, process.pid
        assert process.stdin is not None
        process.stdin.close()


def lose_ledger(root: Path) -> None:
    for path in root.glob("ledger.db*"):
        path.unlink()


def test_a_process_that_reads_a_model_holds_it_again(
    open_node: NodeFactory, root: Path, server: tuple[Node, int]
) -> None:
    node, pid = server
    key = node.store.models.all()[0].key
    node.close()
    lose_ledger(root)
    again = open_node({}, limits=SpaceLimits(Amount(bytes=500_000), Amount()))
    holders = [lease.holder for lease in again.store.leases.all()]
    start = Machine().start_time(pid)
    assert holders == [Holder(HolderKind.PROCESS, f"{pid}/{start}/{Machine().boot()}")]
    with pytest.raises(InUse):
        again.store.models.remove(key)
    with pytest.raises(NoSpace, match=f"held by process:{pid}/"):
        again.store.first.space.reserve(400_000)


def test_a_pin_outlives_the_ledger_and_is_forgotten_with_its_model(
    open_node: NodeFactory, root: Path
) -> None:
    image, record, _ = simple_image(weights=[9000])
    node = open_node({"reg.test/m": image})
    pull(node)
    node.store.models.pin(record.key, pinned=True)
    node.close()
    lose_ledger(root)
    again = open_node({})
    assert again.store.models.all()[0].pinned
    assert again.check().findings == []
    again.store.models.pin(record.key, pinned=False)
    again.close()
    lose_ledger(root)
    once_more = open_node({})
    assert not once_more.store.models.all()[0].pinned
    once_more.store.models.pin(record.key, pinned=True)
    once_more.store.models.remove(record.key, unpin=True)
    assert list(once_more.store.first.paths.pins.iterdir()) == []


def test_mounts_tell_pods_and_people_apart(tmp_path: Path) -> None:
    models, kubelet = Path("/mnt/disk/store/models"), Path("/var/lib/kubelet")
    text = (
        f"36 35 98:0 /store/models/{KEY.hex} {kubelet}/pods/uid-1/volumes/x/mount ro - ext4 /dev/sda1 rw\n"
        f"37 35 98:0 /store/models/{KEY.hex} /srv/my\\040model ro - ext4 /dev/sda1 rw\n"
        f"38 35 98:0 /other/models/{KEY.hex} /srv/other ro - ext4 /dev/sda1 rw\n"
        "39 35 98:0 /store/models/not-a-key /srv/x ro - ext4 /dev/sda1 rw\n"
        "40 35 98:0 / / rw - ext4 /dev/sda1 rw\n"
    )
    target = Path("/srv/my model")
    assert list(mounted(parse_mountinfo(text), models, kubelet)) == [
        Use(KEY, Holder(HolderKind.POD, "uid-1")),
        Use(KEY, Holder(HolderKind.MANUAL, f"mount {target}"), lease_id(target)),
    ]
    assert next(parse_mountinfo(text)) == Mount(
        f"/store/models/{KEY.hex}", f"{kubelet}/pods/uid-1/volumes/x/mount"
    )


def test_any_mount_point_makes_a_holder_that_the_ledger_can_read() -> None:
    for target in ("/srv/two\\012lines", f"/srv/{'x' * 900}"):
        line = f"36 35 98:0 /store/models/{KEY.hex} {target} ro - ext4 /dev/sda1 rw\n"
        (use,) = mounted(parse_mountinfo(line), Path("/mnt/disk/store/models"), Path("/kubelet"))
        assert Holder.parse(str(use.holder)) == use.holder


def test_this_process_is_no_user_of_what_it_serves(tmp_path: Path) -> None:
    path = tmp_path / "models" / KEY.hex / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * mmap.PAGESIZE)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert users_of(tmp_path / "models", Machine()) == []
    finally:
        os.close(fd)


def test_leases_that_are_asked_for_at_once_share_a_commit(open_node: NodeFactory) -> None:
    image, record, _ = simple_image(weights=[100])
    node = open_node({"reg.test/m": image})
    pull(node)
    store = node.store.first
    statements: list[str] = []
    outcomes: list[str] = []

    def take(number: int) -> None:
        key = record.key if number % 4 else KEY  # some ask for a model that isn't there
        [lease] = store.leases.take_all([Use(key, Holder.parse("manual:me"), f"lease-{number}")])
        outcomes.append(lease.id if lease else "not found")

    threads = [threading.Thread(target=take, args=(number,)) for number in range(16)]
    with store.ledger.exclusive():
        store.ledger._db.set_trace_callback(statements.append)
        for thread in threads:
            thread.start()
        while len(store.leases._commits._waiting) < 16:
            assert all(thread.is_alive() for thread in threads)
            os.sched_yield()
    for thread in threads:
        thread.join()
    store.ledger._db.set_trace_callback(None)
    assert statements.count("COMMIT") == 1
    assert outcomes.count("not found") == 4
    assert {lease.id for lease in store.leases.all()} == set(outcomes) - {"not found"}
    assert all(store.leases.release_all([lease.id for lease in store.leases.all()]))


@pytest.mark.slow
def test_a_ledger_with_flipped_bits_or_cut_off_never_stops_a_store_nor_shows_a_wrong_byte(
    memory_root: Path,
) -> None:
    image, _, contents = simple_image(weights=[3000])
    root = memory_root / "store"
    with ExitStack() as stack:
        pull(NodeFactory(root, stack)({"reg.test/m": image}))
    pristine = (root / "ledger.db").read_bytes()
    for step in range(100):
        place = step * len(pristine) // 100 + step
        broken = bytearray(pristine)
        broken[place] ^= 1 << step % 8
        if step % 4 == 3:
            del broken[place:]
        (root / "ledger.db").write_bytes(broken)
        with ExitStack() as stack:
            node = NodeFactory(root, stack)({"reg.test/m": image})
            node.check(repair=True)
            assert files_of(pull(node).path) == contents
        assert findings(root) == []


def test_a_ledger_of_another_version_is_rebuilt(open_node: NodeFactory, root: Path) -> None:
    image, record, _ = simple_image(weights=[3000])
    node = open_node({"reg.test/m": image})
    pull(node)
    node.close()
    database = sqlite3.connect(root / "ledger.db")
    database.execute("PRAGMA user_version = 1")
    database.execute("ALTER TABLE files DROP COLUMN mtime_ns")
    database.close()
    assert [model.key for model in open_node({}).store.models.all()] == [record.key]


def test_a_ledger_of_a_release_that_kept_no_pods_names_keeps_all_else(
    open_node: NodeFactory, root: Path
) -> None:
    """It has no table for them, and after a way back leases end without their names."""
    image, record, _ = simple_image(weights=[3000])
    node = open_node({"reg.test/m": image})
    pull(node)
    node.store.models.pin(record.key, pinned=True)
    pod = Use(record.key, Holder(HolderKind.POD, "uid-1"), "volume", "team/server")
    for name in ("volume", "other"):
        node.store.leases.take_all([replace(pod, lease=name)])
    node.close()
    with closing(sqlite3.connect(root / "ledger.db")) as database:
        database.execute("DELETE FROM leases WHERE id = 'other'")
        database.commit()
    node = open_node({})
    assert [lease.pod for lease in node.store.leases.all()] == ["team/server"]
    node.close()
    with closing(sqlite3.connect(root / "ledger.db")) as database:
        assert database.execute("SELECT id FROM lease_pods").fetchall() == [("volume",)]
        database.execute("DROP TABLE lease_pods")
        database.commit()
    node = open_node({})
    (model,) = node.store.models.all()
    assert (model.pinned, [lease.pod for lease in model.leases]) == (True, [""])
    # kubelet repeats its call after its own restart
    node.store.leases.take_all([pod])
    assert [lease.pod for lease in node.store.leases.all()] == ["team/server"]
    assert node.store.leases.release("volume")
    assert node.store.leases.all() == []
