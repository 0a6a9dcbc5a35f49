"""Caches the manifests that one pull reads several times: to resolve, to plan, to fill the manifest cache."""

from __future__ import annotations

from contextlib import AbstractContextManager

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream, ImageReader


class CachingReader:
    """A reader that fetches each manifest once. For one task of one caller only: it keeps all of them in memory."""

    def __init__(self, inner: ImageReader) -> None:
        self._inner = inner
        self._manifests: dict[Digest, bytes] = {}

    def resolve(self, name: str) -> Descriptor:
        """See `ImageReader.resolve`."""
        return self._inner.resolve(name)

    def manifest(self, descriptor: Descriptor) -> bytes:
        """See `ImageReader.manifest`."""
        # By digest: unlike a tag, its content never changes.
        data = self._manifests.get(descriptor.digest)
        if data is None:
            data = self._manifests[descriptor.digest] = self._inner.manifest(descriptor)
        return data

    def blob(
        self, descriptor: Descriptor, wanted: ByteRange | None = None
    ) -> AbstractContextManager[BlobStream]:
        """See `ImageReader.blob`."""
        return self._inner.blob(descriptor, wanted)

    def tags(self) -> list[str]:
        """See `ImageReader.tags`."""
        return self._inner.tags()
