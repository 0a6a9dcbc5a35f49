"""Resolves the reference of a pull: to a model image, to a foreign image, or without the registry to a cached model.

Reads manifests and records only. Must not know how files are fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from cache_agent.access.signatures import Trust
from cache_agent.fetch.foreign.fetch import ForeignImage
from cache_agent.fetch.model_fetch import ModelImage
from cache_agent.fetch.values import PullRequest
from cache_agent.store.roots import Roots
from cache_agent.store.values import StoredModel
from modelimage.descriptor import LINUX_AMD64, Descriptor, Platform
from modelimage.digest import Digest
from modelimage.errors import UnknownVariant, Unreachable
from modelimage.foreign import AS_PUBLISHED, describe_foreign, resolve_manifest, resolve_ours
from modelimage.ranges import ByteRange
from modelimage.reference import ImageReference
from modelimage.repository import BlobStream, ImageReader

_MOST_KEPT: Final = 1 << 20  # bytes of a manifest


@dataclass(frozen=True, slots=True)
class StaleModel:
    """The cached model that an image last resolved to, because its registry is unreachable."""

    model: StoredModel


ResolvedImage = ModelImage | ForeignImage | StaleModel


@dataclass(frozen=True, slots=True)
class Resolver:
    """Resolves images for one node. `platform` chooses among the images of a foreign index. Thread-safe."""

    roots: Roots
    open_reader: Callable[[ImageReference], ImageReader]
    trust: Trust = field(default_factory=Trust)
    platform: Platform = LINUX_AMD64

    def resolve(self, request: PullRequest) -> ResolvedImage:
        """Resolve an image. Raises UnknownVariant, Untrusted, InvalidImage, and the reader's errors."""
        unchecked = request.reader or self.open_reader(request.image)
        reader = CachingReader(unchecked)
        try:
            root = reader.resolve(request.image.name)
            self.trust.check(request.image, unchecked, root)
            # A foreign image has one variant, which only its pull can prove.
            wanted = None if request.variant == AS_PUBLISHED else request.variant
            ours = resolve_ours(reader, root, wanted, platform=self.platform)
            if ours is not None:
                return ModelImage(reader, ours)
        except Unreachable:
            # Only an unreachable registry: a refusal or a missing tag must not be answered from the cache.
            stale = self._stale(request)
            if stale is None:
                raise
            return stale
        return self._foreign(request, reader, root)

    def _stale(self, request: PullRequest) -> StaleModel | None:
        found = self.roots.models.resolved(str(request.image), request.variant)
        if found is None:
            return None
        model = found[0]
        trusted = self.trust.knows(request.image, self.roots.models.origin(model.key).root)
        return StaleModel(model) if trusted else None

    def _foreign(self, request: PullRequest, reader: ImageReader, root: Descriptor) -> ForeignImage:
        manifest = resolve_manifest(reader, root, self.platform)
        if request.variant not in (None, AS_PUBLISHED):
            # Only an image that another tool made from ours has a variant with a name.
            record = describe_foreign(reader, manifest).record
            if record is None or record.variant != request.variant:
                raise UnknownVariant(
                    f"{request.image} has no variant {request.variant!r}: weightyard didn't build it",
                    hint="Pull it without --variant.",
                )
        return ForeignImage(reader, root, manifest)


class CachingReader:
    """Caches the manifests that one pull reads several times: to resolve, to plan, to fill the manifest cache.

    For one task of one caller only: it keeps all of them in memory.
    """

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
            data = self._inner.manifest(descriptor)
            # Larger ones, which no builder makes, are read again instead of kept.
            if len(data) <= _MOST_KEPT:
                self._manifests[descriptor.digest] = data
        return data

    def blob(
        self, descriptor: Descriptor, wanted: ByteRange | None = None
    ) -> AbstractContextManager[BlobStream]:
        """See `ImageReader.blob`."""
        return self._inner.blob(descriptor, wanted)

    def tags(self) -> list[str]:
        """See `ImageReader.tags`."""
        return self._inner.tags()
