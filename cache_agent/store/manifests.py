"""The manifest cache: manifests, indexes and configs of model images, to serve whole images to container runtimes.

    <root>/images/documents/<hex>           the bytes of a document
    <root>/images/repositories/<hash>.json  a repository's documents and tags, and since when it is public

A document is served for a repository only if it came from there. Lost entries are fetched again, so a damaged entry
counts as missing, and a repository with too many documents loses those that were written first.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cache_agent.store.disk import READ_ONLY_FILE, Disk, is_plain_file, listed, read_plain, reading
from cache_agent.store.paths import StorePaths
from modelimage import canonical
from modelimage.bounds import MALFORMED
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError
from modelimage.recent import Recent

_MODE = 0o644
# Of a repository. A registry's repository gets some with every tag that is pulled, a Hub's with every small file.
_MOST_DOCUMENTS: Final = 4096
# The Hub's are kept without a stored model, and callers choose which ones.
_MOST_REPOSITORIES: Final = 1000
_NO_TAGS: Final[Mapping[str, Digest]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    """One repository's entry. `documents`: media types by digest; `public`: seconds since the epoch."""

    repository: str
    documents: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    public: float | None = None

    def to_bytes(self) -> bytes:
        return canonical.to_bytes(
            {
                "repository": self.repository,
                "documents": self.documents,
                "tags": self.tags,
                "public": None if self.public is None else int(self.public),
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> RepositoryEntry:
        """Raises InvalidImage."""
        document = canonical.parse(data, what="an entry of the manifest cache")
        try:
            return cls(
                str(document["repository"]),
                _texts(document["documents"]),
                _texts(document["tags"]),
                None if document["public"] is None else float(document["public"]),
            )
        except MALFORMED as error:
            raise InvalidImage(f"malformed entry of the manifest cache: {error!r}") from error


class ManifestCache:
    """The manifest cache of one store. Thread-safe. Raises NoSpace, NotWritable, DiskFailed."""

    def __init__(self, paths: StorePaths, disk: Disk) -> None:
        self._documents, self._repositories = paths.documents, paths.repositories
        self._disk = disk
        # An entry is read, changed and written as a whole: of two pulls at once, one would drop the other's documents.
        self._lock = threading.RLock()
        self._known = Recent[str, RepositoryEntry](_MOST_REPOSITORIES)

    def keep(
        self,
        repository: str,
        documents: Iterable[tuple[Descriptor, bytes]],
        tags: Mapping[str, Digest] = _NO_TAGS,
    ) -> None:
        """Store documents, already verified against their digests, and record the tags' digests."""
        with self._lock:
            known = self._of(repository)
            types, meanings = dict(known.documents), dict(known.tags)
            for descriptor, data in documents:
                path = self._documents / descriptor.digest.hex
                # Content-addressed: an existing document needs no rewrite.
                if not is_plain_file(path):
                    self._write(path, data)
                types[str(descriptor.digest)] = descriptor.media_type
            meanings.update({tag: str(digest) for tag, digest in tags.items()})
            if len(types) > _MOST_DOCUMENTS:
                types = self._newer_half(types)
                meanings = {tag: digest for tag, digest in meanings.items() if digest in types}
            # After the documents: an entry must never name one that isn't durable.
            if (types, meanings) != (known.documents, known.tags):
                self._put(replace(known, documents=types, tags=meanings))

    def tagged(self, repository: str, tag: str) -> Digest | None:
        """The last known digest of a tag."""
        with self._lock:
            text = self._of(repository).tags.get(tag)
        return Digest.parse(text) if text else None

    def find(self, repository: str, digest: Digest) -> tuple[str, bytes] | None:
        """Media type and bytes of a document that came from this repository; None when it is missing or damaged."""
        with self._lock:
            media_type = self._of(repository).documents.get(str(digest))
        path = self._documents / digest.hex
        if media_type is None or not is_plain_file(path):
            return None
        with reading(path):
            data = read_plain(path)
        # On every read: a damaged disk must never serve a wrong manifest.
        if Digest.of(data) != digest:
            self._disk.unlink(path)
            return None
        return media_type, data

    def documents(self, repository: str) -> dict[Digest, str]:
        """Media types by digest of a repository's documents."""
        with self._lock:
            return {
                Digest.parse(each): kind for each, kind in self._of(repository).documents.items()
            }

    def public_since(self, repository: str) -> float | None:
        """See `PublicRepositories`."""
        with self._lock:
            return self._of(repository).public

    def note_public(self, repository: str, at: float | None) -> None:
        """See `PublicRepositories`. Only for repositories with documents, else callers
        could fill the disk with invented names."""
        with self._lock:
            known = self._of(repository)
            if known.documents:
                self._put(replace(known, public=at))

    def prune(self, wanted: Callable[[str], bool]) -> int:
        """Remove unwanted repositories and the least recent of too many, then unreferenced documents.

        Returns the number of entries removed.
        """
        with self._lock:
            kept: set[str] = set()
            gone = 0
            self._known = Recent(_MOST_REPOSITORIES)
            newest = sorted(listed(self._repositories), key=_written, reverse=True)
            for count, path in enumerate(newest):
                known = self._read(path)
                if known is None or count >= _MOST_REPOSITORIES or not wanted(known.repository):
                    self._disk.remove_tree(path)
                    gone += 1
                else:
                    kept.update(Digest.parse(each).hex for each in known.documents)
            # After the entries: a crash in between leaves unreferenced documents, never dangling entries.
            for path in listed(self._documents):
                if path.name not in kept or not is_plain_file(path):
                    self._disk.remove_tree(path)
                    gone += 1
        return gone

    def _of(self, repository: str) -> RepositoryEntry:
        known = self._known.get(repository)
        if known is None:
            read = self._read(self._path(repository))
            # The file's name is a truncated hash: a colliding repository's entry must not be used.
            known = read if read and read.repository == repository else RepositoryEntry(repository)
            # Unknown repositories aren't remembered: clients choose the names and could fill the memory.
            if known.documents:
                self._known.put(repository, known)
        return known

    def _newer_half(self, types: Mapping[str, str]) -> dict[str, str]:
        """Half of the documents, so that the sorting is rare. The others' files go with the next `prune`."""
        newest = sorted(
            types, key=lambda each: _written(self._documents / Digest.parse(each).hex), reverse=True
        )
        return {digest: types[digest] for digest in newest[: _MOST_DOCUMENTS // 2]}

    def _read(self, path: Path) -> RepositoryEntry | None:
        if not is_plain_file(path):
            return None
        try:
            with reading(path):
                return RepositoryEntry.parse(read_plain(path))
        except WeightyardError:
            return None  # damaged counts as missing

    def _put(self, known: RepositoryEntry) -> None:
        self._write(self._path(known.repository), known.to_bytes(), _MODE)
        self._known.put(known.repository, known)

    def _write(self, path: Path, data: bytes, mode: int = READ_ONLY_FILE) -> None:
        """Write an entry in the place of whatever has its name: it is a cache's, and can be fetched again."""
        self._disk.mkdir(path.parent)
        if not is_plain_file(path):
            self._disk.remove_tree(path)
        self._disk.write_durable(path, data, mode)

    def _path(self, repository: str) -> Path:
        return self._repositories / f"{hashlib.sha256(repository.encode()).hexdigest()[:40]}.json"


def _written(path: Path) -> float:
    """When a file was written last, in seconds since the epoch; 0 for one that is gone."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _texts(value: Any) -> dict[str, str]:
    """Validate a JSON object of strings to strings."""
    for text in (*value.keys(), *value.values()):
        if not isinstance(text, str):
            raise TypeError(f"expected text, got {text!r:.80}")
    return dict(value)
