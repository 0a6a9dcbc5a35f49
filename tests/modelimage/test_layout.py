"""The OCI layout directory: the contract, what other tools write and read, and what failures leave."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelimage import durable, mediatypes
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    InvalidImage,
    NoSpace,
    NotFound,
    NotWritable,
    Unreachable,
)
from modelimage.layout import Layout
from modelimage.ranges import ByteRange
from modelimage.repository import BlobContent
from tests.modelimage.conformance import (
    BLOB,
    Place,
    RepositoryContract,
    blob_content,
    described,
    index_of,
    manifest_of,
    put_image,
    read_all,
)
from tests.servers import skopeo


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "parent" / "layout"


@pytest.fixture
def place(directory: Path) -> Place:
    def damage(digest: Digest, data: bytes) -> None:
        (directory / "blobs" / "sha256" / digest.hex).write_bytes(data)

    return Place(lambda: Layout(directory), lambda: Layout(directory), damage)


class TestLayoutContract(RepositoryContract):
    """A layout keeps the contract of readers and writers."""


def leftovers(directory: Path) -> list[str]:
    """Everything but what belongs into a layout."""
    blobs = {path.name for path in (directory / "blobs/sha256").glob("*") if len(path.name) == 64}
    known = {"oci-layout", "index.json", ".lock", "blobs", "sha256"} | blobs
    return [path.name for path in directory.rglob("*") if path.name not in known]


def test_a_directory_is_a_layout_after_the_first_write(directory: Path) -> None:
    put_image(Layout(directory), "v1")
    assert json.loads((directory / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((directory / "index.json").read_text())
    assert (index["schemaVersion"], index["mediaType"]) == (2, mediatypes.OCI_INDEX)
    assert leftovers(directory) == []


def test_a_new_blob_is_written_in_one_pass(directory: Path) -> None:
    layout = Layout(directory)
    with layout.ingest() as ingest:
        ingest.write(BLOB[:5])
        ingest.write(memoryview(BLOB)[5:])
        assert ingest.size == len(BLOB)
        path = ingest.commit(Digest.of(BLOB))
    assert path == layout.blob_path(Digest.of(BLOB))
    assert path.read_bytes() == BLOB


def test_an_ingest_without_commit_leaves_nothing(directory: Path) -> None:
    layout = Layout(directory)
    with layout.ingest() as ingest:
        ingest.write(BLOB)
    with contextlib.suppress(RuntimeError), layout.ingest() as ingest:
        ingest.write(BLOB)
        raise RuntimeError
    assert list(layout.blobs()) == []
    assert leftovers(directory) == []


def test_a_refused_blob_leaves_nothing(directory: Path) -> None:
    with pytest.raises(DigestMismatch):
        Layout(directory).put_blob(blob_content(b"other", described(BLOB)))
    assert list(Layout(directory).blobs()) == []
    assert leftovers(directory) == []


def test_what_a_killed_writer_left_is_cleared_and_a_living_ones_is_not(directory: Path) -> None:
    put_image(Layout(directory), "v1")
    script = (
        "import os, sys; from pathlib import Path; from modelimage.layout import Layout\n"
        "with Layout(Path(sys.argv[1])).ingest() as ingest:\n"
        "    ingest.write(b'half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, directory], check=False)
    assert len(leftovers(directory)) == 1
    with Layout(directory).ingest() as living:
        assert len(leftovers(directory)) == 1
        put_image(Layout(directory), "v2", b"another")
        living.write(BLOB)
        living.commit(Digest.of(BLOB))
    assert leftovers(directory) == []


def _tag_many(directory: Path, prefix: str) -> None:
    layout = Layout(directory)
    for index in range(15):
        put_image(layout, f"{prefix}{index}", b"shared")


def test_processes_that_tag_at_once_lose_no_tag(directory: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_tag_many, args=(directory, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(Layout(directory).tags()) == 45


def test_tagging_again_changes_nothing(directory: Path) -> None:
    put_image(Layout(directory), "v1")
    before = _written(directory / "index.json")
    put_image(Layout(directory), "v1")
    assert _written(directory / "index.json") == before


def _written(path: Path) -> tuple[int, int, int]:
    """What of a file only writing changes."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def test_untagging_keeps_other_tags(directory: Path) -> None:
    layout = Layout(directory)
    descriptor = put_image(layout, "v1")
    put_image(layout, "v2")
    layout.untag("v1")
    assert layout.tags() == ["v2"]
    assert layout.has_blob(descriptor)
    with pytest.raises(NotFound):
        layout.untag("v1")


def test_a_referrer_without_tag_is_listed(directory: Path) -> None:
    layout = Layout(directory)
    subject = put_image(layout, "v1")
    referrer, data = manifest_of(
        config=described(b"{}", mediatypes.OCI_EMPTY), subject=subject.to_json()
    )
    layout.put_manifest(referrer, data)
    layout.put_manifest(referrer, data)
    assert [entry.digest for entry in layout.entries()] == [subject.digest, referrer.digest]
    assert layout.tags() == ["v1"]


# Other tools


@pytest.mark.servers
def test_skopeo_copies_a_layout_of_ours_and_we_read_one_of_its(
    directory: Path, tmp_path: Path
) -> None:
    layout = Layout(directory)
    index, data = index_of(put_image(layout, None))
    layout.put_manifest(index, data, "v1")
    skopeo.copy(f"oci:{directory}:v1", f"oci:{tmp_path / 'copy'}:v2", "--multi-arch=all")
    copied = Layout(tmp_path / "copy")
    assert copied.resolve("v2").digest == index.digest
    assert read_all(copied, described(BLOB)) == BLOB
    skopeo.copy(f"oci:{directory}:v1", f"oci:{tmp_path / 'untagged'}", "--multi-arch=all")
    assert Layout(tmp_path / "untagged").resolve("latest").digest == index.digest


@pytest.mark.servers
def test_what_others_wrote_into_index_json_is_kept(directory: Path) -> None:
    layout = Layout(directory)
    put_image(layout, "v1")
    path = directory / "index.json"
    index = json.loads(path.read_text())
    index["annotations"] = {"who": "other"}
    index["manifests"][0]["platform"] = {"os": "linux", "architecture": "arm", "variant": "v7"}
    path.write_text(json.dumps(index))
    put_image(layout, "v2", b"second")
    after = json.loads(path.read_text())
    assert after["annotations"] == index["annotations"]
    assert after["manifests"][0] == index["manifests"][0]


def test_a_whole_reference_as_ref_name_counts_by_its_tag(directory: Path) -> None:
    layout = Layout(directory)
    descriptor = put_image(layout, "v1")
    path = directory / "index.json"
    path.write_text(path.read_text().replace('"v1"', '"docker.io/library/x:v1"'))
    assert layout.resolve("v1").digest == descriptor.digest
    with pytest.raises(NotFound, match=r"no tag 'v2'") as caught:
        layout.resolve("v2")
    assert "docker.io/library/x:v1" in str(caught.value.hint)


def test_a_missing_tag_is_answered_with_the_tags_to_choose_from(directory: Path) -> None:
    layout = Layout(directory)
    descriptor = put_image(layout, "v1")
    for tag in (f"sha256-{descriptor.digest.hex}", f"sha256-{descriptor.digest.hex}.sig"):
        layout.put_manifest(descriptor, layout.manifest(descriptor), tag)
    with pytest.raises(NotFound) as caught:
        layout.resolve("v2")
    assert caught.value.hint == "It holds: v1."
    _tag_many(directory, "t")
    with pytest.raises(NotFound) as caught:
        layout.resolve("v2")
    assert str(caught.value.hint).count(",") < 20


def test_a_tag_of_two_manifests_is_ambiguous(directory: Path) -> None:
    layout = Layout(directory)
    put_image(layout, "v1", b"first")
    put_image(layout, "v2", b"second")
    path = directory / "index.json"
    path.write_text(path.read_text().replace('"v2"', '"v1"'))
    with pytest.raises(InvalidImage, match="several manifests"):
        layout.resolve("v1")


# Faults


def test_what_is_no_layout_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotFound, match="OCI layout directory"):
            Layout(path).resolve("v1")


@pytest.mark.parametrize(
    ("name", "text"),
    [("oci-layout", "{"), ("oci-layout", '{"imageLayoutVersion":"9"}'), ("index.json", "[]"),
     ("index.json", "{}"), ("index.json", '{"manifests":[1]}')],
)  # fmt: skip
def test_a_malformed_layout_is_an_invalid_image(directory: Path, name: str, text: str) -> None:
    put_image(Layout(directory), "v1")
    (directory / name).write_text(text)
    with pytest.raises(InvalidImage):
        Layout(directory).tags()


def test_a_truncated_blob_is_a_mismatch_and_counts_as_absent(directory: Path) -> None:
    layout = Layout(directory)
    put_image(layout, "v1")
    layout.blob_path(Digest.of(BLOB)).write_bytes(BLOB[:-1])
    with pytest.raises(DigestMismatch), layout.blob(described(BLOB)):
        pass
    assert not layout.has_blob(described(BLOB))
    layout.put_blob(blob_content(BLOB))
    assert read_all(layout, described(BLOB)) == BLOB


def test_a_blob_cut_while_it_is_read_is_a_mismatch(directory: Path) -> None:
    layout = Layout(directory)
    put_image(layout, "v1")
    buffer = memoryview(bytearray(1000))
    with layout.blob(described(BLOB), ByteRange(0, 2000)) as stream:
        assert stream.readinto(buffer) == 1000
        os.truncate(layout.blob_path(Digest.of(BLOB)), 1000)
        with pytest.raises(DigestMismatch):
            stream.readinto(buffer)


def test_a_stream_closed_under_its_reader_is_unreachable(directory: Path) -> None:
    layout = Layout(directory)
    put_image(layout, "v1")
    with layout.blob(described(BLOB)) as stream:
        stream.close()
        with pytest.raises(Unreachable, match="closed"):
            stream.readinto(memoryview(bytearray(10)))


class FullDisk:
    """os.write as it is on a disk with `room` bytes left."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._write = os.write

    def __call__(self, descriptor: int, data: memoryview) -> int:
        if self._room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self._write(descriptor, data[: self._room])
        self._room -= count
        return count


def test_a_disk_that_fills_up_is_no_space_and_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(directory)
    put_image(layout, "v1", b"first")
    before = list(layout.blobs())
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", FullDisk(room=300_000))
        with pytest.raises(NoSpace, match="No space left"):
            layout.put_blob(blob_content(BLOB))
    assert list(layout.blobs()) == before
    assert leftovers(directory) == []


def test_a_place_that_cannot_be_written_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritable):
        Layout(tmp_path / "file" / "layout").put_blob(blob_content(BLOB))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOENT, NotFound), (errno.EACCES, AccessDenied), (errno.EIO, Unreachable)],
)
def test_errors_while_reading_are_told_apart(number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected), durable.reading(Path("x")):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EROFS, NotWritable)],
)
def test_errors_while_writing_are_told_apart(number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected), durable.writing(Path("x")):
        raise OSError(number, os.strerror(number))


class OrderOfCalls:
    """Notes fsyncs and renames as they happen."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        fsync, rename = os.fsync, Path.rename

        def note_fsync(descriptor: int) -> None:
            is_directory = os.path.isdir(f"/proc/self/fd/{descriptor}")  # noqa: PTH112
            self.calls.append("fsync directory" if is_directory else "fsync file")
            fsync(descriptor)

        def note_rename(source: Path, target: Path) -> Path:
            self.calls.append("rename")
            return rename(source, target)

        patch.setattr(os, "fsync", note_fsync)
        patch.setattr(Path, "rename", note_rename)


def test_nothing_is_named_before_it_is_durable(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(directory)
    put_image(layout, "v1")
    order = OrderOfCalls(monkeypatch)
    layout.put_blob(blob_content(b"new"))
    assert order.calls == ["fsync file", "rename", "fsync directory"]


def test_a_source_that_yields_slowly_holds_no_lock(directory: Path) -> None:
    """A writer in the middle of a blob must not keep others from tagging."""
    layout = Layout(directory)

    def read(_: int) -> Iterator[bytes]:
        yield b"ab"
        put_image(Layout(directory), "meanwhile")
        yield b"c"

    layout.put_blob(BlobContent(described(b"abc"), read))
    assert layout.tags() == ["meanwhile"]
