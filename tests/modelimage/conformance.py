"""What every place that holds images must do: the obligations of ImageReader and ImageWriter, as tests.

Subclass `RepositoryContract` and give a fixture `place` that opens a fresh, empty repository; each test quotes what
modelimage/repository.py promises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidImage, NotFound
from modelimage.layout import Layout
from modelimage.push import Reporting, execute, find_present, plan_push, read_tree, relayed
from modelimage.ranges import ByteRange
from modelimage.referrers import (
    ArtifactFile,
    attach,
    list_referrers,
    make_artifact,
    read_artifact,
)
from modelimage.repository import MAX_MANIFEST_BYTES, BlobContent, ImageReader, ImageWriter

BLOB = bytes(range(256)) * 5000
PIECE = 100_000


@dataclass(frozen=True)
class Place:
    """A repository under test: opened anew by each call, as another process would open it."""

    reader: Callable[[], ImageReader]
    writer: Callable[[], ImageWriter]
    # What a test may do to a blob behind the repository's back.
    damage: Callable[[Digest, bytes], None] = field(repr=False)


def described(data: bytes, media_type: str = mediatypes.OCI_LAYER_TAR) -> Descriptor:
    return Descriptor(media_type, Digest.of(data), len(data))


def blob_content(data: bytes, descriptor: Descriptor | None = None) -> BlobContent:
    def read(offset: int) -> Iterator[memoryview]:
        for start in range(offset, len(data), PIECE):
            yield memoryview(data)[start : start + PIECE]

    return BlobContent(descriptor or described(data), read)


def manifest_of(
    *layers: Descriptor, config: Descriptor, **members: Any
) -> tuple[Descriptor, bytes]:
    document: Mapping[str, Any] = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
        **members,
    }
    data = canonical.to_bytes(document)
    return described(data, mediatypes.OCI_MANIFEST), data


def index_of(*manifests: Descriptor) -> tuple[Descriptor, bytes]:
    document = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_INDEX,
        "manifests": [manifest.to_json() for manifest in manifests],
    }
    data = canonical.to_bytes(document)
    return described(data, mediatypes.OCI_INDEX), data


def put_image(writer: ImageWriter, tag: str | None, data: bytes = BLOB) -> Descriptor:
    """A config, a layer and their manifest."""
    config = b"{}"
    writer.put_blob(blob_content(data))
    writer.put_blob(blob_content(config))
    descriptor, manifest = manifest_of(
        described(data), config=described(config, mediatypes.OCI_CONFIG)
    )
    writer.put_manifest(descriptor, manifest, tag)
    return descriptor


def read_all(reader: ImageReader, descriptor: Descriptor, wanted: ByteRange | None = None) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(70_001))
    with reader.blob(descriptor, wanted) as stream:
        while count := stream.readinto(buffer):
            out += buffer[:count]
        assert stream.readinto(buffer) == 0
    return bytes(out)


class RepositoryContract:
    """The tests. `place` comes from the subclass."""

    def test_a_blob_comes_back_as_it_was_put(self, place: Place) -> None:
        counts: list[int] = []
        place.writer().put_blob(blob_content(BLOB), counts.append)
        assert sum(counts) == len(BLOB)
        assert place.writer().has_blob(described(BLOB))
        assert read_all(place.reader(), described(BLOB)) == BLOB

    @pytest.mark.parametrize(
        "wanted",
        [ByteRange(0, 1), ByteRange(12_345, 700_000), ByteRange(len(BLOB) - 1, len(BLOB)),
         ByteRange(0, len(BLOB))],
    )  # fmt: skip
    def test_a_range_of_a_blob_is_exactly_that(self, place: Place, wanted: ByteRange) -> None:
        place.writer().put_blob(blob_content(BLOB))
        got = read_all(place.reader(), described(BLOB), wanted)
        assert got == BLOB[wanted.start : wanted.stop]

    def test_an_empty_blob_is_a_blob(self, place: Place) -> None:
        place.writer().put_blob(blob_content(b""))
        assert read_all(place.reader(), described(b"")) == b""

    def test_putting_a_blob_again_sends_nothing(self, place: Place) -> None:
        place.writer().put_blob(blob_content(BLOB))
        counts: list[int] = []
        place.writer().put_blob(blob_content(BLOB), counts.append)
        assert sum(counts) == 0

    @pytest.mark.parametrize(
        "wrong",
        [BLOB[:-1] + b"!", BLOB[:-1], BLOB + b"!", b""],
        ids=["changed", "short", "long", "empty"],
    )
    def test_a_blob_of_other_bytes_is_refused_and_not_visible(
        self, place: Place, wrong: bytes
    ) -> None:
        counts: list[int] = []
        with pytest.raises(DigestMismatch):
            place.writer().put_blob(blob_content(wrong, described(BLOB)), counts.append)
        assert not place.writer().has_blob(described(BLOB))
        with pytest.raises(NotFound), place.reader().blob(described(BLOB)):
            pass

    def test_content_that_fails_leaves_nothing_visible(self, place: Place) -> None:
        class SourceBrokeOff(Exception):
            pass

        def read(offset: int) -> Iterator[bytes]:
            yield BLOB[offset : offset + PIECE]
            raise SourceBrokeOff

        with pytest.raises(SourceBrokeOff):
            place.writer().put_blob(BlobContent(described(BLOB), read))
        assert not place.writer().has_blob(described(BLOB))

    def test_a_blob_that_is_not_there_is_not_found(self, place: Place) -> None:
        put_image(place.writer(), "v1")
        assert not place.writer().has_blob(described(b"other"))
        with pytest.raises(NotFound), place.reader().blob(described(b"other")):
            pass

    def test_a_manifest_is_found_by_tag_and_digest(self, place: Place) -> None:
        descriptor = put_image(place.writer(), "v1")
        for name in ("v1", str(descriptor.digest)):
            found = place.reader().resolve(name)
            assert (found.media_type, found.digest, found.size) == (
                descriptor.media_type,
                descriptor.digest,
                descriptor.size,
            )
            assert Digest.of(place.reader().manifest(found)) == descriptor.digest

    def test_an_index_leads_to_manifests_without_tags(self, place: Place) -> None:
        writer = place.writer()
        child = put_image(writer, None)
        index, data = index_of(child)
        writer.put_manifest(index, data, "v1")
        assert place.reader().tags() == ["v1"]
        assert place.reader().resolve("v1").media_type == mediatypes.OCI_INDEX
        assert place.reader().resolve(str(child.digest)).media_type == mediatypes.OCI_MANIFEST
        assert described(place.reader().manifest(child)).digest == child.digest

    def test_a_tag_moves(self, place: Place) -> None:
        first = put_image(place.writer(), "v1", b"first")
        second = put_image(place.writer(), "v1", b"second")
        assert place.reader().resolve("v1").digest == second.digest
        assert place.reader().resolve(str(first.digest)).digest == first.digest

    def test_tags_are_sorted(self, place: Place) -> None:
        for tag in ("v10", "v2", "latest"):
            put_image(place.writer(), tag)
        assert place.reader().tags() == ["latest", "v10", "v2"]

    def test_names_that_are_not_there_are_not_found(self, place: Place) -> None:
        put_image(place.writer(), "v1")
        for name in ("v2", f"sha256:{'0' * 64}"):
            with pytest.raises(NotFound):
                place.reader().resolve(name)

    def test_a_manifest_is_checked_before_it_is_stored(self, place: Place) -> None:
        descriptor = described(b"{}", mediatypes.OCI_MANIFEST)
        with pytest.raises(DigestMismatch):
            place.writer().put_manifest(descriptor, b"[]", "v1")

    def test_a_manifest_that_names_what_is_not_there_is_refused(self, place: Place) -> None:
        put_image(place.writer(), "other")
        descriptor, data = manifest_of(
            described(b"absent"), config=described(b"{}", mediatypes.OCI_CONFIG)
        )
        with pytest.raises(NotFound):
            place.writer().put_manifest(descriptor, data, "v1")
        assert place.reader().tags() == ["other"]

    def test_a_damaged_manifest_is_a_mismatch(self, place: Place) -> None:
        # Content of its own, since a registry keeps what its repositories share once.
        descriptor = put_image(place.writer(), "v1", b"to be damaged")
        data = place.reader().manifest(descriptor)
        place.damage(descriptor.digest, data.replace(b"schemaVersion", b"schemaVersioN"))
        with pytest.raises(DigestMismatch):
            place.reader().manifest(descriptor)

    def test_a_manifest_too_large_is_refused_unread(self, place: Place) -> None:
        put_image(place.writer(), "v1")
        huge = Descriptor(mediatypes.OCI_MANIFEST, Digest.of(b""), MAX_MANIFEST_BYTES + 1)
        with pytest.raises(InvalidImage):
            place.reader().manifest(huge)

    def test_it_is_safe_for_threads(self, place: Place) -> None:
        writer, reader = place.writer(), place.reader()
        blobs = [b"%d" % (index // 2) * 50_000 for index in range(16)]
        start = threading.Barrier(len(blobs))

        def put_and_read(index: int) -> bool:
            start.wait()
            put_image(writer, f"v{index}", blobs[index])
            return read_all(reader, described(blobs[index])) == blobs[index]

        with ThreadPoolExecutor(len(blobs)) as pool:
            assert all(pool.map(put_and_read, range(len(blobs))))
        assert set(reader.tags()) == {f"v{index}" for index in range(len(blobs))}

    def test_an_artifact_is_found_by_its_subject(self, place: Place) -> None:
        subject = put_image(place.writer(), "v1")
        other = put_image(place.writer(), "v2", b"other")
        files = [ArtifactFile("report.json", "application/json", b"[1]")]
        first = make_artifact(subject, "application/x-report", files, {"a": "b"})
        second = make_artifact(subject, "application/x-sbom", files)
        assert list_referrers(place.reader(), subject) == []
        for artifact in (first, second, first):
            attach(place.writer(), artifact)
        found = list_referrers(place.reader(), subject)
        assert {each.digest for each in found} == {
            first.manifest.descriptor.digest,
            second.manifest.descriptor.digest,
        }
        assert len(found) == 2
        (report,) = list_referrers(place.reader(), subject, "application/x-report")
        assert (report.artifact_type, report.annotations) == ("application/x-report", {"a": "b"})
        assert [file.data for file in read_artifact(place.reader(), report)] == [b"[1]"]
        assert list_referrers(place.reader(), other) == []

    def test_an_image_is_copied_with_all_that_it_names(self, place: Place, tmp_path: Path) -> None:
        writer, reader = place.writer(), place.reader()
        children = [put_image(writer, None), put_image(writer, None, b"second")]
        index, data = index_of(*children)
        writer.put_manifest(index, data, "v1")
        copies = Layout(tmp_path / "copies")
        tree = read_tree(reader, reader.resolve("v1"))
        blobs = {each.digest for each in tree.blobs}
        assert blobs == {Digest.of(BLOB), Digest.of(b"second"), Digest.of(b"{}")}
        plan = plan_push(tree.blobs, find_present(copies, tree.blobs))
        counts: list[int] = []
        execute(
            plan,
            manifests=tree.manifests,
            tags={"v9": index.digest},
            content_of=lambda blob: relayed(reader, blob),
            writer=copies,
            reporting=Reporting(lambda _: nullcontext(counts.append)),
        )
        assert sum(counts) == plan.size
        assert copies.resolve("v9").digest == index.digest
        assert read_all(copies, described(BLOB)) == BLOB
        again = plan_push(tree.blobs, find_present(copies, tree.blobs))
        assert (again.send, again.size) == ((), 0)
