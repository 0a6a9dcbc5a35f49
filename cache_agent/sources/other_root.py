"""The disk tier across roots: copies files that another root of this node has, instead of fetching them.

Having the bytes proves nothing about who may read them: see `fetch.reuse_check`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from cache_agent.sources.source import ChunkRange, Tier
from cache_agent.sources.streams import DescriptorStream, chained
from cache_agent.store.store import Store
from modelimage.errors import NotFound, Unreachable
from modelimage.repository import BlobStream


@dataclass(frozen=True)
class OtherRootSource:
    """Another root's files as a source."""

    store: Store
    tier: Tier = Tier.DISK
    authorizes: bool = False

    @property
    def name(self) -> str:
        return str(self.store.paths.root)

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        """See `Source.open`."""
        return chained(pieces, self._open)

    @contextmanager
    def _open(self, piece: ChunkRange) -> Iterator[BlobStream]:
        path = self.store.paths.file(piece.file.digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise NotFound(f"{self.name} has no file {piece.file.digest.short}") from error
        # Unreachable, not DiskFailed: another root's failing disk must not end a pull that has other sources.
        except OSError as error:
            raise Unreachable(f"{path} can't be opened: {error.strerror}") from error
        stream = DescriptorStream(fd, piece.range.start, piece.range.stop)
        try:
            yield stream
        except OSError as error:
            raise Unreachable(f"{path} can't be read: {error.strerror}") from error
        finally:
            stream.end()
