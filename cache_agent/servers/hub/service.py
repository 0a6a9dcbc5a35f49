"""Answers requests to the Hub endpoint. Blocking; called in threads.

The Hub is the first authority: its listing of a commit is cached, and files are found in the store by the digests in
it, whichever image brought them. When the Hub is unreachable, the records of images that an operator trusts stand in
for it; only files of images that anyone may read are served then.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Final

from cache_agent.access.authorizer import Admission, Authorizer, Refused
from cache_agent.access.callers import NOBODY, Caller
from cache_agent.access.decide import UpstreamAnswer
from cache_agent.access.upstream import UpstreamRegistries
from cache_agent.servers.hub.fill import Fills, Follow, HubImage
from cache_agent.servers.hub.hub_client import Declined, HubUpstream, answer_of
from cache_agent.servers.hub.repo_files import (
    LISTING_TYPE,
    HubFile,
    RepoFiles,
    git_oid,
    source_repo,
)
from cache_agent.servers.hub.routes import HubAddress
from cache_agent.store.manifests import ManifestCache
from cache_agent.store.roots import Roots
from cache_agent.store.values import ImageOrigin, repository_of
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import NotFound, RateLimited, Unreachable, WeightyardError
from modelimage.ranges import ByteRange
from modelimage.record import Record
from modelimage.reference import RegistryReference, parse_image
from modelimage.registry.credentials import Credential
from modelimage.repository import BlobStream

# Files without a sha256 up to this size are cached as documents; larger ones are only relayed.
_SMALL: Final = 10 << 20
# A revision of 40 characters is a commit; any other is a branch or tag.
_COMMIT_LENGTH: Final = 40
# Bytes that are compared before a stored file is given.
_SAMPLE: Final = 64
Stream = Callable[[ByteRange], AbstractContextManager[BlobStream]]


@dataclass(frozen=True, slots=True)
class Fill:
    """A file to download into the cache while it is served; `stream` relays it when the node can't keep it."""

    begin: Callable[[], Follow]
    stream: Stream


@dataclass(frozen=True, slots=True)
class HubContent:
    """A file to serve: from a path in the store, from memory, through the cache, or streamed from the Hub."""

    commit: str
    file: HubFile
    body: Path | bytes | Fill | Stream

    @property
    def held(self) -> list[Digest]:
        """The files that must not be evicted while this is sent."""
        stored = isinstance(self.body, Path | Fill)
        return [self.file.sha256] if stored and self.file.sha256 else []


@dataclass
class HubService:
    """Answers for one node. `vouched`: patterns of image repositories trusted to state their Hub origin."""

    store: Roots
    manifest_cache: ManifestCache
    fills: Fills
    gate: Authorizer
    upstream: HubUpstream
    registries: UpstreamRegistries
    vouched: tuple[str, ...] = ()
    # git object ids of stored files, because computing one reads the whole file.
    _oids: dict[Digest, str] = field(default_factory=dict)

    def listing(self, address: HubAddress, caller: Caller) -> RepoFiles:
        """The listing of a revision. Raises Declined, NotFound, Unreachable, Refused."""
        # Not `hub:`, the scope of files: a caller that may list a gated repository may still not read its files.
        scope = f"hub-api:{address.repo}"
        ask = partial(self.upstream.commit, address.repo, address.revision)
        try:
            self._admit(scope, caller, lambda c: ask(Caller(c)))
            return self._from_hub(address.repo, address.revision, caller)
        except Unreachable:
            found = self._vouched(address.repo, address.revision)
            if found is None:
                raise
            return found

    def file(self, address: HubAddress, caller: Caller) -> HubContent:
        """One file. Raises Declined, NotFound, Unreachable, Refused."""
        try:
            return self._file_of_hub(address, caller)
        except Unreachable:
            listing = self._vouched(address.repo, address.revision)
            if listing is None:
                raise
            file = _entry(listing, address)
            stored = self._stored(file)
            if stored is None:
                raise
            return HubContent(listing.commit, file, stored)

    # -- from the Hub ------------------------------------------------------------------------

    def _file_of_hub(self, address: HubAddress, caller: Caller) -> HubContent:
        repo, etags = address.repo, set[str]()

        def ask(credential: Credential | None) -> None:
            etags.add(self.upstream.ask_for_file(repo, address.revision, address.path, credential))

        # For this very file: of a gated repository everyone may read some files, such as the README.
        reader = self._admit(f"hub:{repo}@{address.revision}:{address.path}", caller, ask).caller
        listing = self._from_hub(repo, address.revision, caller)
        file = _entry(listing, address)
        if file.sha256 is not None:
            if file.sha256.hex in etags:
                self.gate.note(_bytes_scope(listing, file), reader, allowed=True)
            return HubContent(listing.commit, file, self._weights(listing, file, caller, reader))
        body: bytes | Stream | None = self._stored_small(repo, file) or self._kept(repo, file)
        if body is None and file.size <= _SMALL:
            body = self._fetch_small(listing, file, caller)
        if body is None:
            body = self._relayed(listing, file, caller)
        return HubContent(listing.commit, file, body)

    def _weights(
        self, listing: RepoFiles, file: HubFile, caller: Caller, reader: Caller
    ) -> Path | Fill | Stream:
        """A file with a sha256: from the store if the Hub gives this caller the same bytes, else from the Hub."""
        scope = _bytes_scope(listing, file)
        relayed = self._relayed(listing, file, caller)
        stored = self._stored(file)
        if stored is not None:
            # Whoever owns a repository decides which sha256 it lists; that alone must open nobody else's file.
            try:
                self._admit(
                    scope, caller, lambda c: self._compare(listing, file, stored, Caller(c))
                )
            except (Refused, NotFound, Declined):
                return relayed
            return stored

        @contextmanager
        def noting(wanted: ByteRange) -> Iterator[BlobStream]:
            with relayed(wanted) as stream:
                self.gate.note(scope, reader, allowed=True)
                yield stream

        # Only with a sha256 can the file be a layer, which the store verifies.
        digest = file.sha256
        if digest is None:
            raise TypeError(f"{file.path} has no sha256")
        image = HubImage(self.upstream.endpoint, listing, file, digest, noting)
        return Fill(partial(self.fills.begin, image), noting)

    def _relayed(self, listing: RepoFiles, file: HubFile, caller: Caller) -> Stream:
        return partial(self.upstream.stream, listing.repo, listing.commit, file.path, caller)

    def _compare(self, listing: RepoFiles, file: HubFile, stored: Path, caller: Caller) -> None:
        """Raises NotFound unless the Hub gives this caller the stored file's bytes, at a place that nobody foresees."""
        if not file.size:
            return
        start = secrets.randbelow(max(1, file.size - _SAMPLE + 1))
        wanted = ByteRange(start, min(file.size, start + _SAMPLE))
        with self._relayed(listing, file, caller)(wanted) as stream, stored.open("rb") as here:
            here.seek(start)
            given = read_exactly(stream, len(wanted))
            if given != here.read(len(wanted)):
                raise NotFound(f"{file.path} of {listing.repo} isn't the file that it lists")

    def _admit(
        self, scope: str, caller: Caller, ask: Callable[[Credential | None], object]
    ) -> Admission:
        # The authorizer reduces errors to an UpstreamAnswer; the Hub's own error is kept, to pass it on.
        declined: list[Declined] = []
        limited: list[RateLimited] = []

        def question(credential: Credential | None) -> UpstreamAnswer:
            try:
                ask(credential)
            except WeightyardError as error:
                if isinstance(error, Declined):
                    declined.append(error)
                if isinstance(error, RateLimited):
                    limited.append(error)
                return answer_of(error)
            return UpstreamAnswer.ALLOWED

        try:
            return self.gate.admit(scope, caller, question)
        except (Refused, NotFound):
            if declined:
                raise declined[-1] from None
            raise
        except Unreachable:
            if limited:
                raise limited[-1] from None
            raise

    def _from_hub(self, repo: str, revision: str, caller: Caller) -> RepoFiles:
        scope = f"hub:{repo}"
        # A commit never changes; a branch or tag must be resolved again while the Hub is reachable.
        if len(revision) == _COMMIT_LENGTH and (kept := self._kept_listing(scope, revision)):
            return kept
        try:
            commit = self.upstream.commit(repo, revision, caller)
        except Unreachable:
            # The branch's last known commit is better than no model while the Hub is down.
            if kept := self._kept_listing(scope, revision):
                return kept
            raise
        listing = self._kept_listing(scope, commit)
        if listing is None:
            listing = RepoFiles.from_tree(repo, commit, self.upstream.tree(repo, commit, caller))
        data = listing.to_bytes()
        described = Descriptor(LISTING_TYPE, Digest.of(data), len(data))
        tags = dict.fromkeys((revision, commit), described.digest)
        self.manifest_cache.keep(scope, [(described, data)], tags)
        return listing

    def _kept_listing(self, scope: str, revision: str) -> RepoFiles | None:
        digest = self.manifest_cache.tagged(scope, revision)
        found = self.manifest_cache.find(scope, digest) if digest else None
        return RepoFiles.parse(found[1]) if found else None

    # -- bytes -------------------------------------------------------------------------------

    def _stored(self, file: HubFile) -> Path | None:
        stored = self.store.files.get(file.sha256) if file.sha256 else None
        if stored is None or file.sha256 is None or stored.size != file.size:
            return None
        return self.store.files.path(file.sha256)

    def _stored_small(self, repo: str, file: HubFile) -> bytes | None:
        """A stored file found by git's object id, among the images that name this repository as their source."""
        for record in self._records():
            if source_repo(record) != repo or file.sha256 is not None:
                continue
            # The size first: git's object id is computed by reading the whole file.
            for each in record.files:
                if each.size == file.size <= _SMALL and self._oid(each.digest) == file.oid:
                    return self.store.files.path(each.digest).read_bytes()
        return None

    def _oid(self, digest: Digest) -> str:
        if digest not in self._oids:
            self._oids[digest] = git_oid(self.store.files.path(digest).read_bytes())
        return self._oids[digest]

    def _kept(self, repo: str, file: HubFile) -> bytes | None:
        scope = f"hub:{repo}"
        digest = self.manifest_cache.tagged(scope, f"blob:{file.oid}")
        found = self.manifest_cache.find(scope, digest) if digest else None
        return found[1] if found else None

    def _fetch_small(self, listing: RepoFiles, file: HubFile, caller: Caller) -> bytes:
        data = self.upstream.read(listing.repo, listing.commit, file.path, caller, file.size)
        # Cached under the object id for all callers, so it must be verified first.
        if git_oid(data) != file.oid:
            raise Unreachable(f"{file.path} arrived with bytes that differ from the Hub's listing")
        scope, digest = f"hub:{listing.repo}", Digest.of(data)
        described = Descriptor("application/octet-stream", digest, len(data))
        self.manifest_cache.keep(scope, [(described, data)], {f"blob:{file.oid}": digest})
        return data

    # -- trusted images ----------------------------------------------------------------------

    def _vouched(self, repo: str, revision: str) -> RepoFiles | None:
        """A listing of a repository from a trusted image's record, if anyone may read that image."""
        # Newest first, so that a branch name means the revision that was pulled last.
        models = sorted(self.store.models.all(), key=lambda model: model.added, reverse=True)
        for model in models:
            record = self._record(model.key)
            listing = RepoFiles.from_record(record) if record else None
            if listing is None or listing.repo != repo:
                continue
            exact = listing.commit == revision
            if (exact or len(revision) != _COMMIT_LENGTH) and self._readable(model.key):
                return listing
        return None

    def _readable(self, key: Digest) -> bool:
        origin: ImageOrigin = self.store.models.origin(key)
        if not any(fnmatchcase(origin.repository, pattern) for pattern in self.vouched):
            return False
        image = parse_image(origin.image)
        if not isinstance(image, RegistryReference):
            return True
        try:
            question = self.registries.manifest_question(image)
            # Anonymously: without the Hub no caller can prove access to a private repository.
            self.gate.admit(repository_of(image), NOBODY, question)
        except WeightyardError:
            return False
        return True

    def _records(self) -> list[Record]:
        found = (self._record(model.key) for model in self.store.models.all())
        return [record for record in found if record is not None]

    def _record(self, key: Digest) -> Record | None:
        try:
            record = self.store.models.record(key)
        except WeightyardError:
            return None  # damaged; `check` reports it
        # A foreign image names no source.
        return record if isinstance(record, Record) else None


def _bytes_scope(listing: RepoFiles, file: HubFile) -> str:
    """The scope of the proof that the Hub gave a caller these bytes under this name."""
    return f"hub-bytes:{listing.repo}:{file.path}:{file.sha256}"


def read_exactly(stream: BlobStream, count: int) -> bytes:
    """So many bytes of a stream; fewer if it ends."""
    buffer = bytearray(count)
    view, got = memoryview(buffer), 0
    while got < count and (more := stream.readinto(view[got:])):
        got += more
    return bytes(buffer[:got])


def _entry(listing: RepoFiles, address: HubAddress) -> HubFile:
    file = listing.files.get(address.path)
    if file is None:
        raise Declined(404, "EntryNotFound", f"{address.path} is not in {listing.repo}")
    return file
