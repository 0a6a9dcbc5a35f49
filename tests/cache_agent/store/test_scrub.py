"""Bytes that rot at rest: found, repaired chunk by chunk, or taken out of use. And a ledger that rots or is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cache_agent.api.wire import GcBody
from cache_agent.errors import DiskFailed
from cache_agent.fetch.in_order_hash import InOrderHasher
from cache_agent.fetch.values import PullRequest
from cache_agent.leases.holders import ProcessName
from cache_agent.node.maintenance import Maintenance, MaintenanceOptions
from cache_agent.node.node import Node
from cache_agent.observability.events import (
    Event,
    Events,
    FileDamaged,
    FileRepaired,
    FileScrubbed,
    LeaseExpired,
)
from cache_agent.sources.directory import SharedDirectory
from cache_agent.store.partials import Bitmap, Partial
from cache_agent.store.values import Holder, HolderKind
from modelimage.digest import Digest
from modelimage.errors import InUse, NotFound, Unreachable
from modelimage.ranges import ByteRange
from modelimage.record import CHUNK_SIZE
from modelimage.reference import parse_image
from modelimage.repository import BlobStream
from tests.cache_agent.faults import Away
from tests.cache_agent.fetch.test_crash import damage
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, begin_download, findings, pull, service_of

DAY = 86400.0


class Seen(Events):
    """Keeps what was told of damage."""

    def __init__(self) -> None:
        self.damages: list[str] = []
        self.repairs: list[int] = []
        self.scrubbed_bytes = 0
        self.expirations: list[str] = []

    def emit(self, event: Event) -> None:
        match event:
            case FileDamaged(_, detail):
                self.damages.append(detail)
            case FileRepaired(_, chunks):
                self.repairs.append(chunks)
            case FileScrubbed(size):
                self.scrubbed_bytes += size
            case LeaseExpired(_, holder):
                self.expirations.append(holder)


def scrub(node: Node, period: float = 7 * DAY) -> int:
    return Maintenance(
        node.store, node.repairer, MaintenanceOptions(scrub_period=period, scrub_rate=0)
    ).round()


def test_just_the_damaged_chunk_is_fetched_again(open_node: NodeFactory) -> None:
    image, record, contents = simple_image(weights=[2 * CHUNK_SIZE + 77])
    seen = Seen()
    node = open_node({"reg.test/m": image}, events=seen)
    result = pull(node)
    big = max(record.files, key=lambda f: f.size)
    served = result.path / big.path
    before = served.stat().st_ino
    damage(node.store.first.paths.file(big.digest), CHUNK_SIZE + 5)
    image.requests.clear()
    assert scrub(node) == 0, "nothing is due yet"
    open_node.now += 8 * DAY
    assert scrub(node) == 1
    assert seen.repairs == [1]
    assert image.fetched() == CHUNK_SIZE
    assert files_of(result.path) == contents
    assert served.stat().st_ino != before, "a mapped file isn't written to"
    assert scrub(node) == 0
    assert node.store.models.all()[0].verified == open_node.now


def test_what_cannot_be_repaired_is_taken_out_of_use_and_fetched_anew(
    open_node: NodeFactory,
) -> None:
    image, record, contents = simple_image(weights=[90_000])
    seen = Seen()
    node = open_node({"reg.test/m": image}, events=seen)
    pull(node)
    big = max(record.files, key=lambda f: f.size)
    damage(node.store.first.paths.file(big.digest), 1)
    open_node.images["reg.test/m"] = Away()
    open_node.now += 8 * DAY
    assert scrub(node) == 1
    assert node.store.models.all() == []
    assert "not repaired" in seen.damages[-1]
    open_node.images["reg.test/m"] = image
    image.requests.clear()
    assert files_of(pull(node).path) == contents
    # Its other files were kept.
    assert [digest for digest, _ in image.requests] == [big.layer]


def test_a_leased_model_is_left_to_its_server_and_repaired_when_that_is_possible(
    open_node: NodeFactory,
) -> None:
    image, record, contents = simple_image(weights=[90_000])
    node = open_node({"reg.test/m": image})
    result = pull(node)
    node.store.leases.take(result.model.key, Holder.parse("pod:a"))
    damage(node.store.first.paths.file(max(record.files, key=lambda f: f.size).digest), 1)
    open_node.images["reg.test/m"] = Away()
    open_node.now += 8 * DAY
    assert scrub(node) == 1
    assert len(node.store.models.all()) == 1
    open_node.images["reg.test/m"] = image
    assert scrub(node) == 1
    assert files_of(result.path) == contents


def test_a_clock_that_jumped_makes_scrubbing_neither_stop_nor_spin(open_node: NodeFactory) -> None:
    image, _, contents = simple_image(weights=[1000])
    seen = Seen()
    node = open_node({"reg.test/m": image}, events=seen)
    pull(node)
    total = sum(map(len, contents.values())) - len(contents["tokenizer.json"])
    open_node.now -= 400 * DAY
    scrub(node)
    assert seen.scrubbed_bytes == total
    scrub(node)
    assert seen.scrubbed_bytes == total
    open_node.now += 4000 * DAY
    scrub(node)
    assert seen.scrubbed_bytes == 2 * total


@pytest.mark.parametrize("kind", ["removed", "truncated", "emptied", "overwritten"])
def test_a_lost_or_damaged_ledger_is_rebuilt_from_the_files(
    open_node: NodeFactory, root: Path, kind: str
) -> None:
    image, record, contents = simple_image(weights=[9000])
    node = open_node({"reg.test/m": image})
    pull(node)
    node.close()
    ledger = root / "ledger.db"
    data = ledger.read_bytes()
    match kind:
        case "removed":
            ledger.unlink()
        case "truncated":
            ledger.write_bytes(data[: len(data) // 2])
        case "emptied":
            ledger.write_bytes(b"")
        case "overwritten":
            ledger.write_bytes(data[:4096] + bytes(len(data) - 4096))
    again = open_node({})
    assert [model.key for model in again.store.models.all()] == [record.key]
    image.requests.clear()
    result = pull(again)
    assert image.requests == []
    assert files_of(result.path) == contents
    scrub(again)
    assert again.store.models.all()[0].verified == open_node.now


def test_a_bitmap_with_a_flipped_bit_is_not_believed() -> None:
    bitmap = Bitmap.of({0, 3, 9}, 11)
    data = bitmap.encode("boot")
    assert Bitmap.decode(data, 11) == (bitmap, "boot")
    for position in range(len(data)):
        for bit in (1, 128):
            broken = bytearray(data)
            broken[position] ^= bit
            assert Bitmap.decode(bytes(broken), 11) is None
    for cut in range(len(data)):
        assert Bitmap.decode(data[:cut], 11) is None


@pytest.mark.parametrize("what", ["bitmap", "data"])
def test_a_download_that_rots_while_it_waits_is_fetched_right(
    open_node: NodeFactory, what: str
) -> None:
    image, record, contents = simple_image(weights=[2 * CHUNK_SIZE])
    large = max(record.files, key=lambda f: f.size)
    seen = Seen()
    node = open_node({"reg.test/m": image}, events=seen)
    begin_download(node, record, large, contents[large.path])
    [path] = node.store.first.paths.partial.glob(f"*.{what}")
    damage(path, 50)
    handle = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    result = handle.result()
    assert result is not None
    assert files_of(result.path) == contents
    snapshot = handle.snapshot()
    assert snapshot.done == snapshot.total
    # The bitmap had vouched for the chunk in good faith.
    rotten = what == "data"
    assert (len(seen.damages), snapshot.resumed) == ((1, 0) if rotten else (0, CHUNK_SIZE))
    assert node.check().findings == []


def test_a_complete_download_that_rotted_has_only_the_rotten_chunk_fetched(
    open_node: NodeFactory,
) -> None:
    image, record, contents = simple_image(weights=[3 * CHUNK_SIZE])
    large = max(record.files, key=lambda f: f.size)
    node = open_node({"reg.test/m": image})
    begin_download(node, record, large, contents[large.path], chunks=3)
    [path] = node.store.first.paths.partial.glob("*.data")
    damage(path, CHUNK_SIZE + 50)
    assert files_of(pull(node).path) == contents
    fetched = [len(wanted) for digest, wanted in image.requests if digest == large.layer]
    assert [size for size in fetched if size > 1] == [CHUNK_SIZE]  # one byte proves the access
    assert node.check().findings == []


def test_a_disk_that_keeps_nothing_is_told_of_instead_of_fetched_for_ever(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, record, contents = simple_image(weights=[2 * CHUNK_SIZE])
    large = max(record.files, key=lambda f: f.size)
    node = open_node({"reg.test/m": image})
    begin_download(node, record, large, contents[large.path])
    with monkeypatch.context() as patched:
        patched.setattr(Partial, "is_right", lambda *_: False)
        patched.setattr(InOrderHasher, "lease", lambda *_: None)
        with pytest.raises(DiskFailed, match="twice"):
            pull(node)
    assert files_of(pull(node).path) == contents
    assert node.check().findings == []


def test_check_says_what_is_wrong_and_repair_mends_it(open_node: NodeFactory, root: Path) -> None:
    image, record, contents = simple_image(weights=[90_000, 5000])
    node = open_node({"reg.test/m": image})
    result = pull(node)
    paths = node.store.first.paths
    first, second = sorted(record.files, key=lambda f: -f.size)[:2]
    damage(paths.file(first.digest), 7)
    paths.file(second.digest).chmod(0o644)
    (result.path / "config.json").unlink()
    (paths.trash / "leftover").write_bytes(b"x")
    (paths.files / "ab").mkdir(exist_ok=True)
    (paths.files / "ab" / "junk").write_bytes(b"x")
    kinds = {finding.kind for finding in node.check().findings}
    assert kinds == {
        "wrong bytes", "writable", "model differs from its record", "leftover", "foreign file",
    }  # fmt: skip
    mended = node.check(repair=True)
    assert all(finding.repaired for finding in mended.findings)
    assert node.check().findings == []
    assert files_of(pull(node).path) == contents


def test_a_lease_ends_when_its_process_is_gone_and_not_before(open_node: NodeFactory) -> None:
    image, _, _ = simple_image(weights=[100])
    seen = Seen()
    node = open_node({"reg.test/m": image}, events=seen)
    key = pull(node).model.key
    pid, machine = os.getpid(), node.machine
    name = ProcessName(pid, str(machine.start_time(pid)), machine.boot())
    alive = Holder(HolderKind.PROCESS, str(name))
    gone = Holder.parse(alive.name.join(("process:", "")).replace("/", "/9", 1))
    node.store.leases.take(key, alive)
    node.store.leases.take(key, gone)
    node.store.leases.take(key, Holder.parse("manual:me"))
    open_node.now += 10_000 * DAY
    node.store.first.leases.expire()
    assert seen.expirations == [str(gone)]
    assert {str(lease.holder) for lease in node.store.leases.all()} == {str(alive), "manual:me"}


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_holder_that_was_killed_protects_nothing_without_an_agent(
    open_node: NodeFactory, dry_run: bool
) -> None:
    """No maintenance runs between two commands: each has to see for itself that a holder is gone."""
    image, _, _ = simple_image(weights=[100])
    node = open_node({"reg.test/m": image})
    key = pull(node).model.key
    gone = Holder(HolderKind.PROCESS, str(ProcessName(os.getpid(), "1", node.machine.boot())))
    node.store.leases.take(key, gone)
    plan = service_of(node).gc(GcBody(need=1 << 62, dry_run=dry_run))
    assert plan.held_by == []
    assert [victim.key for victim in plan.victims] == [str(key)]


def test_a_model_whose_user_was_killed_can_be_removed_without_an_agent(
    open_node: NodeFactory,
) -> None:
    image, _, _ = simple_image(weights=[100])
    node = open_node({"reg.test/m": image})
    key = pull(node).model.key
    me, machine = os.getpid(), node.machine
    start = str(machine.start_time(me))
    alive, gone = (
        Holder(HolderKind.PROCESS, str(ProcessName(me, each, machine.boot())))
        for each in (start, "1")
    )
    node.store.leases.take(key, gone)
    held = node.store.leases.take(key, alive)
    with pytest.raises(InUse, match=f"leased by process:{me}/{start}/[^,]*$"):
        service_of(node).remove(str(key))
    node.store.leases.release(held.id)
    assert service_of(node).remove(str(key)).key == str(key)


def test_a_file_that_vanished_comes_back_from_the_model_that_holds_its_inode(
    open_node: NodeFactory, root: Path
) -> None:
    image, record, contents = simple_image(weights=[9000])
    node = open_node({"reg.test/m": image})
    pull(node)
    node.close()
    node.store.first.paths.file(record.files[0].digest).unlink()
    again = open_node({})
    assert files_of(pull(again).path) == contents
    again.close()
    assert findings(root) == []


class PlaceThatIsAway:
    """A shared place that can't be reached."""

    name = "away"

    def open(self, digest: Digest, wanted: ByteRange) -> AbstractContextManager[BlobStream]:
        raise Unreachable("away")

    def has(self, digest: Digest, size: int) -> bool:
        raise Unreachable("away")

    def claim(self, digest: Digest) -> bool:
        raise Unreachable("away")

    def put(self, digest: Digest, size: int, data: Iterator[memoryview]) -> None:
        raise Unreachable("away")


def test_a_shared_place_that_is_away_keeps_nothing_from_being_scrubbed(
    open_node: NodeFactory, tmp_path: Path
) -> None:
    image, record, _ = simple_image(weights=[5000])
    seen = Seen()
    node = open_node({"reg.test/m": image}, events=seen)
    pull(node)
    open_node.now += 8 * DAY
    there = SharedDirectory(tmp_path / "shared")
    upkeep = Maintenance(
        node.store,
        node.repairer,
        MaintenanceOptions(scrub_rate=0),
        shared=lambda: [PlaceThatIsAway(), there],
    )
    with pytest.raises(Unreachable, match="away"):
        upkeep.round()
    assert seen.scrubbed_bytes == sum({f.digest: f.size for f in record.files}.values())
    assert all(there.has(file.digest, file.size) for file in record.files)


def test_an_unknown_model_is_not_found(open_node: NodeFactory) -> None:
    node = open_node({})
    with pytest.raises(NotFound):
        node.store.models.find("nothing")


@pytest.mark.parametrize("way", ["appended", "overwritten", "only touched"])
def test_a_cached_file_that_somebody_wrote_to_is_noticed_before_it_is_used_again(
    open_node: NodeFactory, way: str
) -> None:
    image, record, contents = simple_image(weights=[CHUNK_SIZE + 90_000])
    node = open_node({"reg.test/m": image})
    result = pull(node)
    big = max(record.files, key=lambda f: f.size)
    path = node.store.first.paths.file(big.digest)
    path.chmod(0o644)
    match way:
        case "appended":
            with path.open("ab") as file:
                file.write(b"x")
        case "overwritten":
            with path.open("r+b") as file:
                file.write(b"xyz")
        case "only touched":
            os.utime(path, ns=(0, 0))
    image.requests.clear()
    again = pull(node)
    assert again.path == result.path
    assert files_of(again.path) == contents
    expected = {"appended": 0, "overwritten": CHUNK_SIZE, "only touched": 0}[way]
    assert image.fetched() == expected
    assert path.stat().st_mode & 0o777 == 0o444
