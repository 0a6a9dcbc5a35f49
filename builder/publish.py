"""Publishes: sends layers, small blobs and manifests first, and sets tags last.

Readers start from a tag, so nothing of an unfinished build is ever visible under one. All steps are idempotent:
content that the destination already has is not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from builder.reporter import Progress
from builder.sources.interface import RemoteFile
from modelimage import mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import NotFound
from modelimage.filestream import file_pieces
from modelimage.publication import Document, Publication
from modelimage.push import find_present, plan_push, relayed
from modelimage.ranges import ByteRange
from modelimage.recipe import FileSlice, Recipe
from modelimage.referrers import blob_content
from modelimage.repository import BlobContent, ImageReader, ImageWriter
from modelimage.spans import span
from modelimage.stage_workers import both, run_all

SENDS_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes of layers sent to the destination, and bytes it already had."""

    sent: int
    held: int


@dataclass(frozen=True, slots=True)
class LayerSource:
    """How to rebuild a layer's blob: its recipe, and the files' locations, local or at their source."""

    recipe: Recipe
    locations: Mapping[str, Path]
    remote: Mapping[str, RemoteFile] = field(default_factory=dict)

    def read_slice(self, piece: FileSlice) -> Iterator[memoryview | bytes]:
        """The bytes of a file slice. A buffer is valid until the next one."""
        away = self.remote.get(piece.file.path)
        if away is None:
            return file_pieces(self.locations[piece.file.path], piece.start, len(piece))
        return _remote_bytes(piece, away)


def send(
    publication: Publication,
    sources: Mapping[Digest, LayerSource],
    writer: ImageWriter,
    progress: Progress,
    *,
    base: ImageReader | None = None,
) -> Sent:
    """Send everything that the destination lacks, so that tags can be set. `progress` gets bytes of layers.

    `base` reads the layers of the publication's base images.
    Raises AccessDenied, Unreachable, RemoteRefused, NoSpace, NotWritable, and DigestMismatch when a file has
    changed since it was hashed.
    """
    layers = [
        Descriptor(mediatypes.OCI_LAYER_TAR, layer.digest, layer.size)
        for layer in publication.layers
    ]
    layers += publication.bases
    # All are looked up before the first is sent: the total that progress shows is then right.
    plan = plan_push(layers, find_present(writer, layers))
    held = sum(layer.size for layer in plan.held)
    progress.resume(held)

    def put(layer: Descriptor, guarded: Callable[[int], None]) -> None:
        with (
            span("upload", digest=str(layer.digest), size=layer.size),
            progress.part(layer.digest.short, layer.size) as advance,
        ):
            writer.put_blob(_content(layer, sources, base), both(guarded, advance))

    run_all(plan.send, put, advance=lambda _: None, workers=SENDS_AT_ONCE)
    # Registries refuse a manifest whose blobs are missing, so all blobs come first.
    for blob in publication.blobs:
        put_document(writer, blob)
    # In their order, indexes last: registries refuse one that lists a manifest which they lack.
    for manifest in publication.manifests:
        writer.put_manifest(manifest.descriptor, manifest.data)
    return Sent(plan.size, held)


def _content(
    layer: Descriptor, sources: Mapping[Digest, LayerSource], base: ImageReader | None
) -> BlobContent:
    source = sources.get(layer.digest)
    if source is not None:
        return BlobContent(layer, lambda offset: blob_bytes(source, offset))
    if base is None:
        raise NotFound(f"the location of layer {layer.digest} is unknown")
    return relayed(base, layer)


def set_tags(publication: Publication, writer: ImageWriter) -> None:
    """Set the tags, the version's own last, so that clients watching it find the other tags set."""
    # `tags` starts with the version's own.
    for tag in reversed(list(publication.tags)):
        manifest = publication.manifest(tag)
        writer.put_manifest(manifest.descriptor, manifest.data, tag)


def put_document(writer: ImageWriter, document: Document) -> None:
    """Store a small blob unless it exists."""
    if not writer.has_blob(document.descriptor):
        writer.put_blob(blob_content(document))


def blob_bytes(source: LayerSource, offset: int) -> Iterator[memoryview | bytes]:
    """The bytes of a layer blob from `offset` on, built from files. A buffer is valid until the next one."""
    if offset >= source.recipe.size:
        return
    for segment in source.recipe.cut(ByteRange(offset, source.recipe.size)):
        if isinstance(segment, FileSlice):
            yield from source.read_slice(segment)
        else:
            yield segment.data


def _remote_bytes(piece: FileSlice, file: RemoteFile) -> Iterator[memoryview]:
    left = len(piece)
    # A remote read goes on to the end of the file, which may be beyond the slice.
    for data in file.read(piece.start):
        view = memoryview(data)[:left]
        left -= len(view)
        yield view
        if not left:
            return
