"""Answers requests to the Hub endpoint. Blocking; called in threads.

The Hub is the first authority: its listing of a commit is cached, and files are found in the store by the digests in
it, whichever image brought them. When the Hub is unreachable, kept listings and the records of images that an operator
trusts stand in for it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from cache_agent.access.authorizer import Admission, Authorizer, Refused
from cache_agent.access.callers import Caller
from cache_agent.access.decide import UpstreamAnswer
from cache_agent.servers.hub.fill import Fills, Follow, HubImage
from cache_agent.servers.hub.hub_client import Declined, HubUpstream, answer_of
from cache_agent.servers.hub.repo_files import (
    DESCRIPTION_TYPE,
    LISTING_TYPE,
    HubFile,
    RepoFiles,
    described,
    git_oid,
    lasting,
)
from cache_agent.servers.hub.routes import HubAddress, RepoRequest
from cache_agent.servers.hub.trusted_images import (
    COMMIT_LENGTH,
    SMALL,
    TrustedImages,
    unknown_revision,
)
from cache_agent.store.disk import open_plain
from cache_agent.store.manifests import ManifestCache
from cache_agent.store.roots import Roots
from modelimage import canonical
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import NotFound, RateLimited, Unreachable, WeightyardError
from modelimage.ranges import ByteRange
from modelimage.registry.credentials import Credential
from modelimage.repository import BlobStream

# Before a commit: the tag of its description. No revision has a colon.
_ABOUT: Final = "about:"
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
    """Answers for one node. `images` stand in for a Hub that is away."""

    store: Roots
    manifest_cache: ManifestCache
    fills: Fills
    gate: Authorizer
    upstream: HubUpstream
    images: TrustedImages

    def listing(self, address: HubAddress, caller: Caller) -> RepoFiles:
        """The listing of a revision. Raises Declined, NotFound, Unreachable, Refused."""
        # Not `hub:`, the scope of files: a caller that may list a gated repository may still not read its files.
        scope = f"hub-api:{address.repo}"
        ask = partial(self.upstream.describe, address.repo, address.revision)
        try:
            self._admit(scope, caller, lambda c: ask(Caller(c)))
            return self._from_hub(address.repo, address.revision, caller)
        except Unreachable:
            if found := self.images.listing(address.repo, address.revision):
                return found
            self._tell_absent(address, caller)
            raise

    def file(self, address: HubAddress, caller: Caller) -> HubContent:
        """One file. Raises Declined, NotFound, Unreachable, Refused."""
        try:
            return self._file_of_hub(address, caller)
        except Unreachable:
            listing = self.images.listing(address.repo, address.revision)
            if listing is None:
                self._tell_absent(address, caller)
                raise
            file = _entry(listing, address)
            body = self._whole(listing.repo, file, address)
            if body is None:
                raise
            return HubContent(listing.commit, file, body)

    def _tell_absent(self, address: HubAddress, caller: Caller) -> None:
        """While the Hub is away, raise its 404 for what the kept listings of a repository don't have.

        Only to a caller that was shown this repository before: others must not learn what there is.
        """
        scope = f"hub:{address.repo}"
        if not self._shown(address.repo, caller):
            return
        listing = self._kept_listing(scope, address.revision)
        if listing is not None and address.view in (RepoRequest.FILE, RepoRequest.RAW):
            _entry(listing, address)
        if listing is None and LISTING_TYPE in self.manifest_cache.documents(scope).values():
            raise unknown_revision(address.repo, address.revision)

    def _shown(self, repo: str, caller: Caller) -> bool:
        for scope in (f"hub-api:{repo}", f"hub-seen:{repo}"):
            try:
                self.gate.admit(scope, caller, _away)
            except (Refused, Unreachable):
                continue
            return True
        return False

    # -- from the Hub ------------------------------------------------------------------------

    def _file_of_hub(self, address: HubAddress, caller: Caller) -> HubContent:
        repo, etags = address.repo, set[str]()

        def ask(credential: Credential | None) -> None:
            etags.add(self.upstream.ask_for_file(repo, address.revision, address.path, credential))

        reader = self._reader(address, caller, ask)
        # Whoever reads a file knows that the repository is there.
        self.gate.note(f"hub-seen:{repo}", reader, allowed=True)
        listing = self._from_hub(repo, address.revision, caller)
        file = _entry(listing, address)
        if file.etag in etags:
            # Clients ask for a file by branch and by commit: what the Hub gave by one name stays readable by the other.
            self.gate.note(_file_scope(address, listing.commit), reader, allowed=True)
        if file.sha256 is not None and address.view is RepoRequest.FILE:
            if file.sha256.hex in etags:
                self.gate.note(_bytes_scope(listing, file), reader, allowed=True)
            return HubContent(listing.commit, file, self._weights(listing, file, caller, reader))
        body: Path | bytes | Stream | None = self._whole(repo, file, address)
        if body is None and file.size <= SMALL:
            body = self._fetch_small(listing, file, caller)
        if body is None:
            body = self._relayed(listing, file, caller)
        return HubContent(listing.commit, file, body)

    def _reader(
        self, address: HubAddress, caller: Caller, ask: Callable[[Credential | None], object]
    ) -> Caller:
        """Who may read a file. Without the Hub, a branch's file is that of its last known commit."""
        try:
            return self._admit(_file_scope(address, address.revision), caller, ask).caller
        except Unreachable:
            kept = self._kept_listing(f"hub:{address.repo}", address.revision)
            if kept is not None:
                with suppress(Unreachable):
                    return self.gate.admit(_file_scope(address, kept.commit), caller, _away).caller
            raise

    def _whole(self, repo: str, file: HubFile, address: HubAddress) -> Path | bytes | None:
        """What the node itself has of a file that the caller may read; None if nothing."""
        if address.view is RepoRequest.RAW and file.sha256 is not None:
            return file.pointer
        if file.sha256 is not None:
            return self._stored(file)
        return self.images.small_file(repo, file) or self._kept(repo, file)

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
        with (
            self._relayed(listing, file, caller)(wanted) as stream,
            os.fdopen(open_plain(stored), "rb") as here,
        ):
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
            raise Unreachable(f"{self.upstream.endpoint} can't be reached") from None

    def _from_hub(self, repo: str, revision: str, caller: Caller) -> RepoFiles:
        scope = f"hub:{repo}"
        # A commit never changes; a branch or tag must be resolved again while the Hub is reachable.
        if len(revision) == COMMIT_LENGTH and (kept := self._kept_listing(scope, revision)):
            return kept
        try:
            said = self.upstream.describe(repo, revision, caller)
        except Unreachable:
            # The branch's last known commit is better than no model while the Hub is down.
            if kept := self._kept_listing(scope, revision):
                return kept
            raise
        commit = str(said["sha"])
        listing = self._kept_listing(scope, commit)
        if listing is None:
            listing = RepoFiles.from_tree(repo, commit, self.upstream.tree(repo, commit, caller))
        now = replace(listing, description=described(said))
        self._keep(scope, revision, listing, now)
        return now

    def _keep(self, scope: str, revision: str, before: RepoFiles, now: RepoFiles) -> None:
        data = now.to_bytes()
        listing = Descriptor(LISTING_TYPE, Digest.of(data), len(data))
        documents, tags = [(listing, data)], dict.fromkeys((revision, now.commit), listing.digest)
        # Not for each change of a counter: every kept description stays until the repository is dropped.
        if lasting(now.description) != lasting(before.description):
            text = canonical.to_bytes(now.description)
            about = Descriptor(DESCRIPTION_TYPE, Digest.of(text), len(text))
            documents.append((about, text))
            tags[f"{_ABOUT}{now.commit}"] = about.digest
        self.manifest_cache.keep(scope, documents, tags)

    def _kept_listing(self, scope: str, revision: str) -> RepoFiles | None:
        found = self._kept_document(scope, revision)
        if found is None:
            return None
        listing = RepoFiles.parse(found)
        about = self._kept_document(scope, f"{_ABOUT}{listing.commit}")
        said = canonical.parse(about, what="a description") if about else {}
        return replace(listing, description=said)

    def _kept_document(self, scope: str, tag: str) -> bytes | None:
        digest = self.manifest_cache.tagged(scope, tag)
        found = self.manifest_cache.find(scope, digest) if digest else None
        return found[1] if found else None

    # -- bytes -------------------------------------------------------------------------------

    def _stored(self, file: HubFile) -> Path | None:
        stored = self.store.files.get(file.sha256) if file.sha256 else None
        if stored is None or file.sha256 is None or stored.size != file.size:
            return None
        return self.store.files.path(file.sha256)

    def _kept(self, repo: str, file: HubFile) -> bytes | None:
        return self._kept_document(f"hub:{repo}", f"blob:{file.oid}")

    def _fetch_small(self, listing: RepoFiles, file: HubFile, caller: Caller) -> bytes:
        data = self.upstream.read(listing.repo, listing.commit, file.path, caller, file.size)
        # Cached under the object id for all callers, so it must be verified first.
        if git_oid(data) != file.oid:
            raise Unreachable(f"{file.path} arrived with bytes that differ from the Hub's listing")
        scope, digest = f"hub:{listing.repo}", Digest.of(data)
        described = Descriptor("application/octet-stream", digest, len(data))
        self.manifest_cache.keep(scope, [(described, data)], {f"blob:{file.oid}": digest})
        return data


def _away(_: Credential | None) -> UpstreamAnswer:
    """The answer of a Hub that can't be asked: only what the authorizer still remembers counts."""
    return UpstreamAnswer.UNREACHABLE


def _file_scope(address: HubAddress, revision: str) -> str:
    """The scope of one file: of a gated repository everyone may read some files, such as the README."""
    return f"hub:{address.repo}@{revision}:{address.path}"


def _bytes_scope(listing: RepoFiles, file: HubFile) -> str:
    """The scope of the proof that the Hub gave a caller these bytes under this name."""
    return f"hub-bytes:{listing.repo}:{file.path}:{file.sha256}"


def read_exactly(stream: BlobStream, count: int) -> bytes:
    """`count` bytes of a stream; fewer if it ends."""
    buffer = bytearray(count)
    view, got = memoryview(buffer), 0
    while got < count and (more := stream.readinto(view[got:])):
        got += more
    return bytes(buffer[:got])


def _entry(listing: RepoFiles, address: HubAddress) -> HubFile:
    file = listing.files.get(address.path)
    if file is None:
        message = f"{address.path} is not in {listing.repo}"
        raise Declined(404, "EntryNotFound", message, listing.commit)
    return file
