"""Copies images between repositories: a pure plan of the blobs to send, and its execution.

Works between registries and layouts. Blobs that the destination has are not sent; the others are sent in parallel and
resumed after failures; children are stored before the manifests that list them, and tags last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, Unreachable
from modelimage.layout import referenced
from modelimage.publication import Document
from modelimage.ranges import ByteRange
from modelimage.registry.retry import Backoff
from modelimage.repository import BlobContent, ImageReader, ImageWriter
from modelimage.spans import span
from modelimage.stage_workers import both, run_all

WORKERS: Final = 4
_BUFFER_BYTES: Final = 1 << 20
_MAX_MANIFESTS: Final = 10_000
_NESTED: Final = mediatypes.INDEX_TYPES | mediatypes.MANIFEST_TYPES


@dataclass(frozen=True, slots=True)
class ImageTree:
    """All content below a root: `manifests` with children first and the root last; `blobs` once per digest."""

    root: Descriptor
    manifests: tuple[Document, ...]
    blobs: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class PushPlan:
    """The blobs to send and those that the destination already has."""

    send: tuple[Descriptor, ...]
    held: tuple[Descriptor, ...]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        return (*self.send, *self.held)

    @property
    def size(self) -> int:
        """Bytes to send."""
        return sum(blob.size for blob in self.send)

    @property
    def held_size(self) -> int:
        """Bytes that the destination already has."""
        return sum(blob.size for blob in self.held)


@dataclass(frozen=True, slots=True)
class Reporting:
    """Progress callbacks, called from any thread: bytes per blob in transfer (negative: to be sent again), and its
    completion.
    """

    part: Callable[[Descriptor], AbstractContextManager[Callable[[int], None]]] = lambda _: (
        nullcontext(lambda _: None)
    )
    finished: Callable[[Descriptor], None] = lambda _: None


def read_tree(reader: ImageReader, root: Descriptor) -> ImageTree:
    """Read all manifests below a root. Raises InvalidImage for more than 10,000, NotFound, DigestMismatch."""
    manifests: dict[Digest, Document] = {}
    blobs: dict[Digest, Descriptor] = {}

    def walk(descriptor: Descriptor, above: frozenset[Digest]) -> None:
        # An index may list a manifest several times.
        if descriptor.digest in manifests:
            return
        # The image is untrusted: its size and depth are bounded before the recursion goes on.
        if len(above) + len(manifests) > _MAX_MANIFESTS or len(above) > 16:
            raise InvalidImage(f"{root.digest} nests too many manifests")
        data = reader.manifest(descriptor)
        for child in referenced(canonical.parse(data, what=f"manifest {descriptor.digest}")):
            if child.media_type in _NESTED:
                walk(child, above | {descriptor.digest})
            else:
                blobs.setdefault(child.digest, child)
        # Stored after its children: a destination accepts a manifest only when what it lists is there.
        manifests[descriptor.digest] = Document(descriptor, data)

    walk(root, frozenset())
    return ImageTree(root, tuple(manifests.values()), tuple(blobs.values()))


def merge_trees(trees: Iterable[ImageTree]) -> tuple[tuple[Document, ...], tuple[Descriptor, ...]]:
    """Merge the manifests and blobs of several trees, without duplicates and with children first. Pure."""
    manifests: dict[Digest, Document] = {}
    blobs: dict[Digest, Descriptor] = {}
    for tree in trees:
        for document in tree.manifests:
            manifests.setdefault(document.descriptor.digest, document)
        for blob in tree.blobs:
            blobs.setdefault(blob.digest, blob)
    return tuple(manifests.values()), tuple(blobs.values())


def plan_push(blobs: Iterable[Descriptor], present: Collection[Digest]) -> PushPlan:
    """Split blobs by whether the destination has them; the largest come first, to shorten the end of a parallel push.

    Pure. Law: `send` and `held` together are the blobs, once each.
    """
    unique = {blob.digest: blob for blob in blobs}
    send = [blob for blob in unique.values() if blob.digest not in present]
    held = [blob for blob in unique.values() if blob.digest in present]
    # Ties by digest, so that equal images give equal plans.
    send.sort(key=lambda blob: (-blob.size, blob.digest))
    return PushPlan(tuple(send), tuple(held))


def find_present(writer: ImageWriter, blobs: Sequence[Descriptor]) -> frozenset[Digest]:
    """The blobs that a destination has, checked in parallel."""
    # Each answer takes a round trip and no bandwidth: one after another, hundreds of layers would take minutes.
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(writer.has_blob, blobs)
        return frozenset(blob.digest for blob, there in zip(blobs, found, strict=True) if there)


def execute(
    plan: PushPlan,
    *,
    manifests: Sequence[Document],
    tags: Mapping[str, Digest],
    content_of: Callable[[Descriptor], BlobContent],
    writer: ImageWriter,
    reporting: Reporting | None = None,
) -> None:
    """Send blobs in parallel, then manifests in order, then tags. After the first error no new transfer starts."""
    reports = reporting or Reporting()

    def send(blob: Descriptor, guarded: Callable[[int], None]) -> None:
        with span("upload", digest=str(blob.digest), size=blob.size), reports.part(blob) as advance:
            writer.put_blob(content_of(blob), both(guarded, advance))
        reports.finished(blob)

    # Progress is reported per blob; the callback from run_all only stops the job after a failure.
    run_all(plan.send, send, advance=lambda _: None, workers=WORKERS)
    for document in manifests:
        writer.put_manifest(document.descriptor, document.data)
    # Tags last, after every manifest: until then a reader of a tag gets the old image, complete.
    put_tags(writer, manifests, tags)


def put_tags(
    writer: ImageWriter, manifests: Sequence[Document], tags: Mapping[str, Digest]
) -> None:
    """Point tags at stored manifests."""
    by_digest = {document.descriptor.digest: document for document in manifests}
    for tag, digest in tags.items():
        document = by_digest[digest]
        writer.put_manifest(document.descriptor, document.data, tag)


def relayed(
    reader: ImageReader, descriptor: Descriptor, backoff: Backoff | None = None
) -> BlobContent:
    """Content for a destination that is read from a source's blob and resumed after failures."""
    waits = backoff or Backoff()

    def read(offset: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        position, failures = offset, 0
        while position < descriptor.size:
            try:
                for count in _counts(reader, descriptor, position, buffer):
                    # Progress resets the count: a long transfer survives many interruptions, a dead source only a few.
                    position, failures = position + count, 0
                    yield buffer[:count]
            except Unreachable:
                failures += 1
                if not waits.wait(failures):
                    raise

    return BlobContent(descriptor, read)


def _counts(
    reader: ImageReader, descriptor: Descriptor, position: int, buffer: memoryview
) -> Iterator[int]:
    # No range at the start: a registry without ranges still serves a transfer that is never interrupted.
    wanted = ByteRange(position, descriptor.size) if position else None
    with reader.blob(descriptor, wanted) as stream:
        while count := stream.readinto(buffer):
            yield count
