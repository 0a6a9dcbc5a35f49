"""The mirror's response bodies, as values. `api` and `cache_agent.servers.sender` send them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from cache_agent.fetch.values import ReadablePrefix
from modelimage.digest import Digest
from modelimage.ranges import ByteRange
from modelimage.recipe import FileSlice, Recipe
from modelimage.repository import BlobStream

BLOB_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class CachedManifest:
    """A manifest or config, in memory."""

    digest: Digest
    media_type: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that is rebuilt from files in the store.

    While a pull is still downloading them, `ready` returns a file's readable prefix at a position, None when that
    position isn't readable yet; it raises the pull's error.
    """

    digest: Digest
    recipe: Recipe
    ready: Callable[[Digest, int], ReadablePrefix | None] | None = None
    media_type: str = BLOB_TYPE

    @property
    def size(self) -> int:
        return self.recipe.size

    def files(self) -> list[Digest]:
        """The files that the layer is made from."""
        return [s.file.digest for s in self.recipe.segments if isinstance(s, FileSlice)]


@dataclass(frozen=True, slots=True)
class RelayedBlob:
    """A blob that isn't cached: `open` streams a range of it from upstream with the caller's credentials."""

    digest: Digest
    size: int
    open: Callable[[ByteRange], AbstractContextManager[BlobStream]]
    media_type: str = BLOB_TYPE


Content = CachedManifest | Layer | RelayedBlob
