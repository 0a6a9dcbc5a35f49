"""What the Hub endpoint has to say to one request. Blocking; called in threads.

The Hub's own word comes first: its listing of a commit is kept, and files are found in the store by the identities in
it, whichever image brought them. Without the Hub, the records of images that an operator vouches for are believed
in what they say of their source; their readers are those of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Final

from cache_agent.access.callers import NOBODY, Caller
from cache_agent.access.decide import Answer
from cache_agent.access.gate import Authorizer, Refused
from cache_agent.access.upstream import Upstream
from cache_agent.node.node import Node
from cache_agent.servers.hub.addresses import HubAddress
from cache_agent.servers.hub.fill import Fills, Follow, HubImage
from cache_agent.servers.hub.listing import (
    LISTING_TYPE,
    HubFile,
    Listing,
    git_oid,
    source_repo,
)
from cache_agent.servers.hub.upstream import Declined, HubUpstream, answer_of
from cache_agent.store.values import Origin, repository_of
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import NotFound, RateLimited, Unreachable, WeightyardError
from modelimage.ranges import ByteRange
from modelimage.record import Record
from modelimage.reference import RegistryReference, parse_image
from modelimage.registry.credentials import Credential
from modelimage.repository import BlobStream

_SMALL: Final = 10 << 20
_COMMIT_LENGTH: Final = 40
Stream = Callable[[ByteRange], AbstractContextManager[BlobStream]]


@dataclass(frozen=True, slots=True)
class Fill:
    """A file to be brought into the cache while it is given out; `stream` is for when the node can't keep it."""

    begin: Callable[[], Follow]
    stream: Stream


@dataclass(frozen=True, slots=True)
class HubContent:
    """A file to be given out: at a path of the store, in memory, through the cache, or streamed from the Hub."""

    commit: str
    file: HubFile
    body: Path | bytes | Fill | Stream

    @property
    def held(self) -> list[Digest]:
        """What must not be evicted while it is sent."""
        stored = isinstance(self.body, Path | Fill)
        return [self.file.sha256] if stored and self.file.sha256 else []


@dataclass
class HubService:
    """Answers for one node. `vouched` are patterns of image repositories whose word on their source counts."""

    node: Node
    gate: Authorizer
    upstream: HubUpstream
    registries: Upstream
    vouched: tuple[str, ...] = ()
    _oids: dict[Digest, str] = field(default_factory=dict)
    _fills: Fills = field(init=False)

    def __post_init__(self) -> None:
        self._fills = Fills(self.node)

    def listing(self, address: HubAddress, caller: Caller) -> Listing:
        """What a revision holds. Raises Declined, NotFound, Unreachable, Refused."""
        place = f"hub-api:{address.repo}"
        ask = partial(self.upstream.commit, address.repo, address.revision)
        try:
            self._admit(place, caller, lambda c: ask(Caller(c)))
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

    # -- the Hub's word ----------------------------------------------------------------------

    def _file_of_hub(self, address: HubAddress, caller: Caller) -> HubContent:
        repo = address.repo
        ask = partial(self.upstream.ask_for_file, repo, address.revision, address.path)
        self._admit(f"hub:{repo}", caller, ask)
        listing = self._from_hub(repo, address.revision, caller)
        file = _entry(listing, address)
        body: Path | bytes | Fill | Stream | None
        body = self._stored(file) or self._stored_small(repo, file) or self._kept(repo, file)
        if body is None and file.sha256 is None and file.size <= _SMALL:
            body = self._fetch_small(listing, file, caller)
        if body is None:
            body = self._from_upstream(listing, file, caller)
        return HubContent(listing.commit, file, body)

    def _from_upstream(self, listing: Listing, file: HubFile, caller: Caller) -> Fill | Stream:
        stream = partial(self.upstream.stream, listing.repo, listing.commit, file.path, caller)
        if file.sha256 is None:
            return stream
        image = HubImage(self.upstream, listing, file, file.sha256, caller)
        return Fill(partial(self._fills.begin, image), stream)

    def _admit(
        self, place: str, caller: Caller, ask: Callable[[Credential | None], object]
    ) -> None:
        declined: list[Declined] = []
        limited: list[RateLimited] = []

        def question(credential: Credential | None) -> Answer:
            try:
                ask(credential)
            except WeightyardError as error:
                if isinstance(error, Declined):
                    declined.append(error)
                if isinstance(error, RateLimited):
                    limited.append(error)
                return answer_of(error)
            return Answer.ALLOWED

        try:
            self.gate.admit(place, caller, question)
        except (Refused, NotFound):
            if declined:
                raise declined[-1] from None
            raise
        except Unreachable:
            if limited:
                raise limited[-1] from None
            raise

    def _from_hub(self, repo: str, revision: str, caller: Caller) -> Listing:
        place = f"hub:{repo}"
        if len(revision) == _COMMIT_LENGTH and (kept := self._kept_listing(place, revision)):
            return kept
        try:
            commit = self.upstream.commit(repo, revision, caller)
        except Unreachable:
            if kept := self._kept_listing(place, revision):
                return kept
            raise
        listing = self._kept_listing(place, commit)
        if listing is None:
            listing = Listing.of_tree(repo, commit, self.upstream.tree(repo, commit, caller))
        data = listing.to_bytes()
        described = Descriptor(LISTING_TYPE, Digest.of(data), len(data))
        tags = dict.fromkeys((revision, commit), described.digest)
        self.node.manifest_cache.keep(place, [(described, data)], tags)
        return listing

    def _kept_listing(self, place: str, revision: str) -> Listing | None:
        digest = self.node.manifest_cache.tagged(place, revision)
        found = self.node.manifest_cache.find(place, digest) if digest else None
        return Listing.parse(found[1]) if found else None

    # -- bytes -------------------------------------------------------------------------------

    def _stored(self, file: HubFile) -> Path | None:
        stored = self.node.store.file(file.sha256) if file.sha256 else None
        if stored is None or file.sha256 is None or stored.size != file.size:
            return None
        return self.node.store.path(file.sha256)

    def _stored_small(self, repo: str, file: HubFile) -> bytes | None:
        """A file that only git's object id names, found among those of images that say they are of this repository."""
        for record in self._records():
            if source_repo(record) != repo or file.sha256 is not None:
                continue
            for each in record.files:
                if each.size == file.size <= _SMALL and self._oid(each.digest) == file.oid:
                    return self.node.store.path(each.digest).read_bytes()
        return None

    def _oid(self, digest: Digest) -> str:
        if digest not in self._oids:
            self._oids[digest] = git_oid(self.node.store.path(digest).read_bytes())
        return self._oids[digest]

    def _kept(self, repo: str, file: HubFile) -> bytes | None:
        place = f"hub:{repo}"
        digest = self.node.manifest_cache.tagged(place, f"blob:{file.oid}")
        found = self.node.manifest_cache.find(place, digest) if digest else None
        return found[1] if found else None

    def _fetch_small(self, listing: Listing, file: HubFile, caller: Caller) -> bytes:
        data = self.upstream.read(listing.repo, listing.commit, file.path, caller, file.size)
        if git_oid(data) != file.oid:
            raise Unreachable(f"{file.path} arrived with other bytes than the Hub lists")
        place, digest = f"hub:{listing.repo}", Digest.of(data)
        described = Descriptor("application/octet-stream", digest, len(data))
        self.node.manifest_cache.keep(place, [(described, data)], {f"blob:{file.oid}": digest})
        return data

    # -- images vouched for ------------------------------------------------------------------

    def _vouched(self, repo: str, revision: str) -> Listing | None:
        """What an image that an operator vouches for says of a repository, if anyone may read that image."""
        models = sorted(self.node.store.models(), key=lambda model: model.added, reverse=True)
        for model in models:
            record = self._record(model.key)
            listing = Listing.of_record(record) if record else None
            if listing is None or listing.repo != repo:
                continue
            exact = listing.commit == revision
            if (exact or len(revision) != _COMMIT_LENGTH) and self._readable(model.key):
                return listing
        return None

    def _readable(self, key: Digest) -> bool:
        origin: Origin = self.node.store.origin(key)
        if not any(fnmatchcase(origin.repository, pattern) for pattern in self.vouched):
            return False
        image = parse_image(origin.image)
        if not isinstance(image, RegistryReference):
            return True
        try:
            question = self.registries.manifest_question(image)
            self.gate.admit(repository_of(image), NOBODY, question)
        except WeightyardError:
            return False
        return True

    def _records(self) -> list[Record]:
        found = (self._record(model.key) for model in self.node.store.models())
        return [record for record in found if record is not None]

    def _record(self, key: Digest) -> Record | None:
        try:
            record = self.node.store.record(key)
        except WeightyardError:
            return None  # damaged, which `check` reports
        # A foreign image names no source.
        return record if isinstance(record, Record) else None


def _entry(listing: Listing, address: HubAddress) -> HubFile:
    file = listing.files.get(address.path)
    if file is None:
        raise Declined(404, "EntryNotFound", f"{address.path} is not in {listing.repo}")
    return file
