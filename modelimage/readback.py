"""Reads an image with the nodes' own reader before it is published, so that no tag leads to one that they refuse.

A dry pull: index, manifest and record are resolved for each variant, and each file of the record must be in a layer
that the manifest lists, with the size that its recipe gives. No weights are read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotFound
from modelimage.publication import Document, Publication
from modelimage.ranges import ByteRange
from modelimage.record import Record
from modelimage.repository import BlobStream, ImageReader
from modelimage.resolve import ResolvedModel, resolve_ours


def check_publication(planned: Publication) -> None:
    """Check every tag of a publication before anything is sent. Raises InvalidImage, DigestMismatch."""
    reader = _InMemory(
        {each.descriptor.digest: each for each in (*planned.manifests, *planned.blobs)}
    )
    for tag in planned.tags:
        check_readable(reader, planned.manifest(tag).descriptor)


def check_readable(reader: ImageReader, root: Descriptor) -> None:
    """Check that every variant of an image of weightyard's can be pulled.

    Raises InvalidImage, DigestMismatch, and any error of the reader.
    """
    first = _resolved(reader, root)
    _check_layers(first)
    for variant in first.variants:
        if variant != first.record.variant:
            _check_layers(_resolved(reader, root, variant))


def _resolved(reader: ImageReader, root: Descriptor, variant: str | None = None) -> ResolvedModel:
    model = resolve_ours(reader, root, variant)
    if model is None:
        raise InvalidImage(
            f"the record of {root.digest} doesn't describe its layers",
            hint="Build the image again.",
        )
    return model


def _check_layers(resolved: ResolvedModel) -> None:
    record: Record = resolved.record
    listed = {layer.digest: layer.size for layer in resolved.layers}
    for layer in record.layers:
        size = listed.get(layer.digest)
        if size != layer.size or record.recipe(layer.digest).size != size:
            raise InvalidImage(
                f"manifest {resolved.manifest.digest} doesn't hold layer {layer.digest} of its record",
                hint="Build the image again.",
            )


@dataclass(frozen=True, slots=True)
class _InMemory:
    """An ImageReader for documents in memory."""

    documents: dict[Digest, Document]

    def resolve(self, name: str) -> Descriptor:
        return self._document(Digest.parse(name)).descriptor

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self._document(descriptor.digest).data

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        data = self._document(descriptor.digest).data
        yield io.BytesIO(data[wanted.start : wanted.stop] if wanted else data)

    def tags(self) -> list[str]:
        return []

    def _document(self, digest: Digest) -> Document:
        if digest not in self.documents:
            raise NotFound(f"{digest} isn't published")
        return self.documents[digest]
