"""Finds the chunks of a file that this node can serve to peers: the verified ones, stored or still downloading.

Peers request a file by its sha256 and its identity, a digest of all that its record claims. A forged record that claims
another file's sha256 has another identity, so its chunks are never served as that file's. Files without chunk digests
verified here (a foreign image's, until they are derived) aren't served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

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
from modelimage.recent import Recent
from modelimage.record import RecordFile, Role

_MOST_NAMES: Final = 10_000


@dataclass(frozen=True, slots=True)
class ServableRange:
    """One file as it is here now: the path of its bytes, its size, and its verified chunks."""

    path: Path
    size: int
    have: Have

    def chunk(self, index: int) -> ByteRange:
        """The range of a chunk in the file. Raises NotFound when it isn't here yet."""
        if not 0 <= index < self.have.count or not self.have.have >> index & 1:
            raise NotFound("that chunk isn't here")
        return chunk_range(self.size, index)


@dataclass
class ServableChunks:
    """Looks up files in one node's roots and downloads. `is_public`: whether anyone may read a repository.

    `everything`: serve private files too, because the connection is encrypted.
    """

    store: Roots
    downloads: Downloads
    announcements: FetchAnnouncements
    everything: bool
    is_public: Callable[[str], bool]
    zone: Callable[[], str] = lambda: ""
    # Identities of stored files, with the chunk digests that they were computed from.
    _names: Recent[Digest, tuple[tuple[str, ...], Digest]] = field(
        default_factory=lambda: Recent(_MOST_NAMES)
    )

    def find(self, sha256: Digest, file: Digest) -> ServableRange:
        """The servable chunks of a file. Raises NotFound, also for private files, to hide that they exist."""
        # Looked up before the store: a download that is committed between the two look-ups is then found as a file.
        download = self.downloads.running(file)
        offer = self._stored(sha256, file)
        if offer is None and download is not None and download.file.digest == sha256:
            offer = self._flying(download, file)
        if offer is None or not self._may_give(sha256, file):
            raise NotFound("no such file here")
        return offer

    def _may_give(self, sha256: Digest, file: Digest) -> bool:
        # Without encryption only public files are served: anyone on the network could read along.
        if self.everything or self.announcements.is_public(file):
            return True
        store = self.store.files.store_of(sha256)
        return store is not None and any(map(self.is_public, store.ledger.authorized_by(sha256)))

    def _flying(self, download: Download, name: Digest) -> ServableRange:
        count = download.file.chunk_count()
        have = bits(download.partial.arrived()) if download.is_open else 0
        coming = bits(self.announcements.coming(name)) & ((1 << count) - 1)
        path = download.partial.path if download.is_open else Path()
        said = Have(count, have, coming & ~have, download.received, self.zone())
        return ServableRange(path, download.file.size, said)

    def _stored(self, sha256: Digest, name: Digest) -> ServableRange | None:
        store = self.store.files.store_of(sha256)
        stored = store.files.get(sha256) if store else None
        if store is None or stored is None or self._name(stored) != name:
            return None
        # The chunk digests describe the file as it was verified; a changed file could serve other bytes.
        if not store.files.is_untouched(stored):
            return None
        count = len(stored.chunks)
        have = Have(count, (1 << count) - 1, 0, stored.size, self.zone())
        return ServableRange(store.paths.file(sha256), stored.size, have)

    def _name(self, stored: StoredFile) -> Digest:
        """The identity of a stored file, computed once: it hashes every chunk digest of the file."""
        known = self._names.get(stored.digest)
        if known is None or known[0] != stored.chunks:
            claims = RecordFile(
                "", stored.size, stored.digest, Role.WEIGHT, stored.digest, stored.chunks
            )
            # Two threads may do it twice, with the same result.
            known = stored.chunks, identity(claims)
            self._names.put(stored.digest, known)
        return known[1]
