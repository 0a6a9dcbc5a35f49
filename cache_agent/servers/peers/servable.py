"""What this node can give to peers of a file: the chunks verified so far, of one that is stored or on its way.

A file is asked for by its sha256 and by the identity of all that its record claims: a forged record that claims another
file's sha256 has another identity, so its chunks are never given for that file's. Files whose chunk digests weren't
verified here (a foreign image's, until they are derived) have nothing to offer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cache_agent.chunks import chunk_range
from cache_agent.fetch.download import Download, Downloads
from cache_agent.peers.announcements import FetchAnnouncements
from cache_agent.peers.values import Have, bits
from cache_agent.store.partials import identity
from cache_agent.store.roots import Roots
from cache_agent.store.values import StoredFile
from modelimage.digest import Digest
from modelimage.errors import NotFound
from modelimage.ranges import ByteRange
from modelimage.record import RecordFile, Role


@dataclass(frozen=True, slots=True)
class ServableRange:
    """One file as it is here now: where its bytes lie, its size, and which chunks are right."""

    path: Path
    size: int
    have: Have

    def chunk(self, index: int) -> ByteRange:
        """Where a chunk lies in the file. Raises NotFound for one that isn't here yet."""
        if not 0 <= index < self.have.count or not self.have.have >> index & 1:
            raise NotFound("that chunk isn't here")
        return chunk_range(self.size, index)


@dataclass
class ServableChunks:
    """Reads one node's roots and flights. `is_public` tells whether anyone may read a repository.

    `everything`: who asks may have private files too, since the line is encrypted.
    """

    store: Roots
    downloads: Downloads
    announcements: FetchAnnouncements
    everything: bool
    is_public: Callable[[str], bool]
    zone: Callable[[], str] = lambda: ""
    _names: dict[Digest, tuple[tuple[str, ...], Digest]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, sha256: Digest, file: Digest) -> ServableRange:
        """What is here of a file. Raises NotFound: also for what this caller may not have, so that it tells nothing."""
        download = self.downloads.flying(file)
        offer = self._stored(sha256, file)
        if offer is None and download is not None and download.file.digest == sha256:
            offer = self._flying(download, file)
        if offer is None or not self._may_give(sha256, file):
            raise NotFound("no such file here")
        return offer

    def _may_give(self, sha256: Digest, file: Digest) -> bool:
        if self.everything or self.announcements.is_public(file):
            return True
        store = self.store.having(sha256)
        return store is not None and any(map(self.is_public, store.ledger.proven_by(sha256)))

    def _flying(self, download: Download, name: Digest) -> ServableRange:
        count = download.file.chunk_count()
        have = bits(download.partial.arrived()) if download.is_open else 0
        coming = bits(self.announcements.coming(name)) & ((1 << count) - 1)
        path = download.partial.path if download.is_open else Path()
        said = Have(count, have, coming & ~have, download.received, self.zone())
        return ServableRange(path, download.file.size, said)

    def _stored(self, sha256: Digest, name: Digest) -> ServableRange | None:
        store = self.store.having(sha256)
        stored = store.file(sha256) if store else None
        if store is None or stored is None or self._name(stored) != name:
            return None
        if not store.is_untouched(stored):
            return None
        count = len(stored.chunks)
        have = Have(count, (1 << count) - 1, 0, stored.size, self.zone())
        return ServableRange(store.paths.file(sha256), stored.size, have)

    def _name(self, stored: StoredFile) -> Digest:
        """The identity of a stored file, computed once: it hashes every chunk digest of the file."""
        with self._lock:
            known = self._names.get(stored.digest)
        if known is None or known[0] != stored.chunks:
            claims = RecordFile(
                "", stored.size, stored.digest, Role.WEIGHT, stored.digest, stored.chunks
            )
            known = stored.chunks, identity(claims)
            with self._lock:
                self._names[stored.digest] = known
        return known[1]
