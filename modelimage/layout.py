"""An OCI image layout directory (image-spec v1.1, image-layout.md), for reading and writing images.

    oci-layout          marks the directory as a layout
    index.json          lists the manifests, with tags as `org.opencontainers.image.ref.name` annotations
    blobs/sha256/<hex>  all content by digest

Needs no server, and several processes may write one layout: blobs appear complete under their digest, and index.json
is replaced under a lock. Layouts written by other tools are supported: unknown members of index.json are preserved.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from modelimage import canonical, durable, mediatypes
from modelimage.descriptor import Descriptor, descriptors
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidImage, NotFound
from modelimage.filestream import FileStream
from modelimage.layout_index import (
    INDEX,
    entries_of,
    index_bytes,
    listed,
    pick_entry,
    retagged,
    tag_of,
    without_tag,
)
from modelimage.ranges import ByteRange
from modelimage.reference import check_directory_meant
from modelimage.referrers import (
    UNSOUND,
    LeaveOut,
    described_referrer,
    fallback_tag,
    gather,
    ignore,
    listed_entries,
    subject_of,
)
from modelimage.repository import MAX_MANIFEST_BYTES, BlobContent, StreamedContent

_MARKER: Final = "oci-layout"
_LOCK: Final = ".lock"
_VERSION: Final = "1.0.0"
_MANIFEST_TYPES: Final = mediatypes.INDEX_TYPES | mediatypes.MANIFEST_TYPES


class BlobIngest:
    """A new blob whose digest is computed by its writer while writing. Created by `Layout.ingest`."""

    def __init__(self, layout: Layout, pending: durable.PendingFile) -> None:
        self._layout = layout
        self._pending = pending

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._pending.size

    def write(self, data: memoryview | bytes | bytearray) -> None:
        """Append the bytes. Raises NoSpace, NotWritable."""
        with durable.writing(self._layout.path):
            self._pending.write(data)

    def commit(self, digest: Digest) -> Path:
        """Publish the written bytes under the digest that the caller guarantees; returns the blob's path."""
        path = self._layout.blob_path(digest)
        with durable.writing(path):
            self._pending.publish(path)
        return path


class Layout:
    """An ImageReader and ImageWriter of one layout directory. Safe for concurrent threads and processes.

    Accesses nothing before the first call; the first write creates a missing directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prepared = False
        self._subjects: dict[Digest, tuple[Digest, Descriptor] | None] = {}

    def __repr__(self) -> str:
        return f"Layout({str(self.path)!r})"

    # Reading

    def resolve(self, name: str) -> Descriptor:
        """The manifest with a tag or digest. Raises NotFound, InvalidImage.

        As in skopeo, `latest` also resolves to the only manifest of a layout that has no tags.
        """
        entries = self._read_entries()
        if ":" in name:
            return self._resolve_digest(Digest.parse(name), entries)
        return without_tag(pick_entry(entries, name, self.path))

    def manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest's verified bytes. Raises NotFound, DigestMismatch, and InvalidImage above 4 MiB."""
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise InvalidImage(f"manifest {descriptor.digest} has {descriptor.size} bytes")
        data = self._read_blob(descriptor.digest)
        if len(data) != descriptor.size or Digest.of(data) != descriptor.digest:
            raise _damaged(descriptor.digest, self.path)
        return data

    @contextlib.contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[FileStream]:
        """A blob or a range of it; only its length is verified. Raises NotFound, DigestMismatch."""
        path = self.blob_path(descriptor.digest)
        with durable.reading(path):
            file = path.open("rb", buffering=0)
        with contextlib.closing(FileStream(file.fileno(), path, wanted, file.close)) as stream:
            # Checked before any byte is returned: a range of a truncated blob would otherwise just end early.
            if os.fstat(file.fileno()).st_size != descriptor.size:
                raise _damaged(descriptor.digest, self.path)
            yield stream

    def tags(self) -> list[str]:
        """All tags, sorted."""
        return sorted({tag for entry in self._read_entries() if (tag := tag_of(entry)) is not None})

    def referrers(
        self, subject: Digest, artifact_type: str | None = None, leave_out: LeaveOut = ignore
    ) -> list[Descriptor]:
        """The manifests that refer to a subject: those in index.json, and those under the fallback tag.

        At most MAX_REFERRERS; `leave_out` is told of entries that can't be read, and of there being more.
        """
        return gather(self._referrers(subject, leave_out), artifact_type, leave_out)

    def _referrers(self, subject: Digest, leave_out: LeaveOut) -> Iterator[object]:
        for entry in self._read_entries():
            tag = tag_of(entry)
            try:
                about = self._about(without_tag(entry))
                # Other tools may have written a fallback index into the layout.
                if tag == fallback_tag(subject):
                    data = self.manifest(without_tag(entry))
                    yield from listed_entries(data, what=f"index {Digest.of(data)}")
            except UNSOUND as error:
                # A tagged manifest is an image, which nobody asked for here; anything else may be about the subject.
                if tag is None or tag == fallback_tag(subject):
                    leave_out(error)
                continue
            if about is not None and about[0] == subject:
                yield about[1].to_json()

    def _about(self, descriptor: Descriptor) -> tuple[Digest, Descriptor] | None:
        """The subject of a manifest, and the manifest as a referrer of it; None if it has no subject."""
        # Kept, because every manifest of an image and every attachment is asked about.
        if descriptor.digest not in self._subjects:
            document = canonical.parse(
                self.manifest(descriptor), what=f"manifest {descriptor.digest}"
            )
            subject = subject_of(document)
            self._subjects[descriptor.digest] = (
                (subject, described_referrer(descriptor, document)) if subject else None
            )
        return self._subjects[descriptor.digest]

    def blob_path(self, digest: Digest) -> Path:
        """The path of a blob, whether it exists or not."""
        return self.path / "blobs" / "sha256" / digest.hex

    # Writing

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob exists with its full length."""
        path = self.blob_path(descriptor.digest)
        try:
            with durable.reading(path):
                return path.stat().st_size == descriptor.size
        except NotFound:
            return False

    @contextlib.contextmanager
    def ingest(self) -> Iterator[BlobIngest]:
        """Write a new blob in one pass: `write` its bytes, then `commit` their digest.

        Without a commit nothing remains. If the digest is known in advance, use `put_blob`, which verifies it.
        Raises NoSpace, NotWritable.
        """
        self._prepare()
        # In the directory of the final name: a rename is atomic only within one filesystem.
        with durable.writing(self.path):
            pending = durable.PendingFile(self._blobs)
        try:
            yield BlobIngest(self, pending)
        finally:
            pending.discard()

    def put_blob(self, content: BlobContent, progress: Callable[[int], None] | None = None) -> None:
        """Store a blob and verify it while writing. Raises DigestMismatch, NoSpace, NotWritable."""
        # A blob gets its name only after verification, so an existing one needs no second write.
        if self.has_blob(content.descriptor):
            return
        hasher = hashlib.sha256()
        with self.ingest() as ingest:
            for buffer in content.read(0):
                ingest.write(buffer)
                hasher.update(buffer)
                if progress:
                    progress(len(buffer))
            digest = Digest(hasher.hexdigest())
            if (digest, ingest.size) != (content.descriptor.digest, content.descriptor.size):
                raise DigestMismatch(
                    f"blob {content.descriptor.digest} came as {ingest.size} bytes of {digest}",
                    hint="The source changed or is damaged: try again from an intact copy.",
                )
            ingest.commit(digest)

    def put_streamed(
        self, content: StreamedContent, progress: Callable[[int], None] | None = None
    ) -> None:
        """Store a blob under the digest computed while streaming. Raises as `put_blob`."""
        with self.ingest() as ingest:
            for buffer in content.read(0):
                ingest.write(buffer)
                if progress:
                    progress(len(buffer))
            if ingest.size != content.size:
                raise DigestMismatch(f"a blob came as {ingest.size} bytes, not {content.size}")
            ingest.commit(content.digest())

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        """Store a manifest and point a tag at it. Raises NotFound when a blob or manifest it refers to is missing."""
        if Digest.of(data) != descriptor.digest or len(data) != descriptor.size:
            raise DigestMismatch(f"manifest {descriptor.digest} doesn't match its digest")
        document = canonical.parse(data, what=f"manifest {descriptor.digest}")
        # Checked before it is stored: readers may rely on everything below a stored manifest being there.
        for child in referenced(document):
            if not self.has_blob(child):
                raise NotFound(
                    f"manifest {descriptor.digest} names {child.digest}, which isn't in the layout"
                )
        if not self.has_blob(descriptor):
            with self.ingest() as ingest:
                ingest.write(data)
                ingest.commit(descriptor.digest)
        if tag is not None:
            self._edit_index(lambda entries: retagged(entries, descriptor, tag))
        elif "subject" in document:
            # A referrer has no tag and no parent: only index.json leads to it.
            referrer = described_referrer(descriptor, document)
            self._edit_index(lambda entries: listed(entries, referrer))

    def untag(self, tag: str) -> None:
        """Remove a tag; the blobs stay. Raises NotFound."""
        if tag not in self.tags():
            raise NotFound(f"no tag {tag!r} in {self.path}")
        self._edit_index(lambda entries: [each for each in entries if tag_of(each) != tag])

    def unlist(self, digest: Digest) -> None:
        """Remove a manifest and its tags from index.json; no error if it isn't listed."""
        self._edit_index(
            lambda entries: [each for each in entries if each.get("digest") != str(digest)]
        )

    def entries(self) -> list[Descriptor]:
        """The entries of index.json, with tags as their ref.name annotations."""
        return [Descriptor.from_json(entry) for entry in self._read_entries()]

    def blobs(self) -> Iterator[tuple[Digest, int]]:
        """Every blob in the directory with its size in bytes."""
        with durable.reading(self._blobs):
            for path in sorted(self._blobs.iterdir()):
                # Skips the temporary files of writers.
                if len(path.name) == 64:
                    yield Digest(path.name), path.stat().st_size

    def remove_blob(self, digest: Digest) -> None:
        """Remove a blob; no error if it doesn't exist. The caller must make sure that nothing refers to it."""
        path = self.blob_path(digest)
        with durable.writing(path):
            path.unlink(missing_ok=True)

    # Inside

    @property
    def _blobs(self) -> Path:
        return self.path / "blobs" / "sha256"

    def _prepare(self) -> None:
        """Create the layout if needed, and remove files of dead writers; once per object."""
        if self._prepared:
            return
        check_directory_meant(self.path)
        with durable.writing(self.path):
            durable.make_directories(self._blobs)
            with self._lock():
                if not (self.path / INDEX).exists():
                    durable.write_file(self.path / INDEX, index_bytes({}, []))
                # The marker comes last: it makes the directory a layout, so readers never see one without index.json.
                if not (self.path / _MARKER).exists():
                    marker = canonical.to_bytes({"imageLayoutVersion": _VERSION})
                    durable.write_file(self.path / _MARKER, marker)
            durable.sweep(self.path)
            durable.sweep(self._blobs)
        self._prepared = True

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        # A separate file: index.json is replaced, and a lock on it would stay with the replaced file.
        with (self.path / _LOCK).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read_index(self) -> dict[str, Any]:
        marker = self.path / _MARKER
        try:
            with durable.reading(marker):
                version = canonical.parse(marker.read_bytes(), what=str(marker))
        except NotFound as error:
            check_directory_meant(self.path)
            lacks = (
                f"it has no file {_MARKER}" if self.path.is_dir() else "there is no such directory"
            )
            raise NotFound(
                f"{self.path} isn't an OCI layout directory: {lacks}",
                hint="Check the path after oci:, or build the image first.",
            ) from error
        if version.get("imageLayoutVersion") != _VERSION:
            raise InvalidImage(f"{marker}: not a layout of version {_VERSION}")
        path = self.path / INDEX
        with durable.reading(path):
            return canonical.parse(path.read_bytes(), what=str(path))

    def _read_entries(self) -> list[dict[str, Any]]:
        return entries_of(self._read_index(), self.path)

    def _edit_index(self, edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        self._prepare()
        # Read, changed and replaced under the lock: several processes may push to one layout.
        with durable.writing(self.path / INDEX), self._lock():
            index = self._read_index()
            entries = entries_of(index, self.path)
            edited = edit(entries)
            # Not rewritten without a change: readers and backups would see a new file for nothing.
            if edited != entries:
                durable.write_file(self.path / INDEX, index_bytes(index, edited))

    def _resolve_digest(self, digest: Digest, entries: Iterable[dict[str, Any]]) -> Descriptor:
        for entry in entries:
            if entry.get("digest") == str(digest):
                return without_tag(entry)
        # A child of an index isn't listed in index.json: its media type comes from its own bytes.
        data = self._read_blob(digest)
        media_type = canonical.parse(data, what=f"manifest {digest}").get("mediaType")
        if media_type not in _MANIFEST_TYPES:
            raise InvalidImage(f"{digest} in {self.path} isn't a manifest")
        return Descriptor(media_type, digest, len(data))

    def _read_blob(self, digest: Digest) -> bytes:
        path = self.blob_path(digest)
        with durable.reading(path), path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise InvalidImage(f"{digest} in {self.path} is too large for a manifest")
        return data


def referenced(document: dict[str, Any]) -> list[Descriptor]:
    """The blobs and manifests that a manifest requires: config, layers, children; not its subject."""
    found = [Descriptor.from_json(document["config"])] if "config" in document else []
    for member in ("layers", "manifests"):
        # Go's tools write an empty list as null.
        if document.get(member):
            found += descriptors(document, member, what="the manifest")
    return found


def _damaged(digest: Digest, path: Path) -> DigestMismatch:
    return DigestMismatch(
        f"blob {digest} in {path} is damaged",
        hint="Remove that file and write the image again.",
    )
