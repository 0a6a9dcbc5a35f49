"""Images that an operator trusts to state their Hub origin: they stand in for a Hub that is away.

Blocking. Only files of images that anyone may read are listed: without the Hub no caller can prove access to a private
repository.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final

from cache_agent.access.authorizer import Authorizer
from cache_agent.access.callers import NOBODY
from cache_agent.access.signatures import Trust
from cache_agent.access.upstream import UpstreamRegistries
from cache_agent.observability.events import Events, HubImageIgnored
from cache_agent.servers.hub.description import CARD, CONFIG, MAX_DOCUMENT, description
from cache_agent.servers.hub.hub_client import Declined
from cache_agent.servers.hub.repo_files import HubFile, RepoFiles, git_oid, source_repo
from cache_agent.servers.hub.routes import DEFAULT_REVISION
from cache_agent.store.disk import read_plain
from cache_agent.store.roots import Roots
from cache_agent.store.values import ImageOrigin, repository_of
from modelimage.digest import Digest
from modelimage.errors import WeightyardError
from modelimage.recent import Recent
from modelimage.record import Record
from modelimage.reference import RegistryReference, parse_image

# Files without a sha256 up to this size are read whole; larger ones are only relayed.
SMALL: Final = 10 << 20
# A revision of 40 characters is a commit; any other is a branch or tag.
COMMIT_LENGTH: Final = 40
_MOST_TOLD: Final = 1000
_MOST_OIDS: Final = 20_000


@dataclass
class TrustedImages:
    """The images of one node. `patterns`: of image repositories that are trusted; `trust`: which must be signed."""

    store: Roots
    registries: UpstreamRegistries
    gate: Authorizer
    patterns: tuple[str, ...] = ()
    trust: Trust = field(default_factory=Trust)
    events: Events = field(default_factory=Events)
    # What was told: a client asks for every file, and again and again.
    _told: set[tuple[str, str]] = field(default_factory=set)
    # git object ids of stored files, because computing one reads the whole file.
    _oids: Recent[Digest, str] = field(default_factory=lambda: Recent(_MOST_OIDS))

    def listing(self, repo: str, revision: str) -> RepoFiles | None:
        """A repository's listing from a trusted image's record; None without such an image.

        Raises Declined with the Hub's 404 if there are images of the repository but none of this revision: they know
        their commit, and of branches only the default one, which is the image that was pulled last.
        """
        known = False
        for key, record in self._newest_first():
            if source_repo(record) != repo:
                continue
            if (refusal := self._refusal(key)) is not None:
                self._tell(repo, self.store.models.origin(key).image, refusal)
                continue
            if revision in (record.revision, DEFAULT_REVISION):
                return self._listing(record)
            known = True
        if known:
            raise unknown_revision(repo, revision)
        return None

    def small_file(self, repo: str, file: HubFile) -> bytes | None:
        """A stored file found by git's object id, among all images that name this repository as their source."""
        if file.sha256 is not None:
            return None
        for _, record in self._newest_first():
            if source_repo(record) != repo:
                continue
            # The size first: git's object id is computed by reading the whole file.
            for each in record.files:
                if each.size == file.size <= SMALL and self._oid(each.digest) == file.oid:
                    return self._read(each.digest)
        return None

    def _listing(self, record: Record) -> RepoFiles | None:
        listing = RepoFiles.from_record(record, self._oid)
        if listing is None:
            return None
        small = {
            file.path: self._read(file.digest)
            for file in record.files
            if file.path in (CARD, CONFIG) and file.size <= MAX_DOCUMENT
        }
        documents = {path: data for path, data in small.items() if data is not None}
        return replace(listing, description=description(record, documents))

    def _oid(self, digest: Digest) -> str | None:
        oid = self._oids.get(digest)
        if oid is None and (data := self._read(digest)) is not None:
            oid = git_oid(data)
            self._oids.put(digest, oid)
        return oid

    def _read(self, digest: Digest) -> bytes | None:
        path = self.store.files.path(digest)
        try:
            return read_plain(path)
        except FileNotFoundError:
            return None  # evicted since the record was read

    def _tell(self, repo: str, image: str, refusal: str) -> None:
        """Log once, until the agent restarts, why an image doesn't serve a repository."""
        if len(self._told) < _MOST_TOLD and (repo, image) not in self._told:
            self._told.add((repo, image))
            self.events.emit(HubImageIgnored(repo, image, refusal))

    def _refusal(self, key: Digest) -> str | None:
        """Why the image may not stand in for the Hub; None if it may."""
        origin: ImageOrigin = self.store.models.origin(key)
        if not any(fnmatchcase(origin.repository, pattern) for pattern in self.patterns):
            return f"no pattern in the setting servers.hub_images matches {origin.repository}"
        image = parse_image(origin.image)
        # A signature rule may have been added since the pull; the next pull verifies the signature.
        if not self.trust.knows(image, origin.root):
            return (
                "this node accepts it only when it is signed, and no signature of it was verified"
            )
        if not isinstance(image, RegistryReference):
            return None
        try:
            # Its files stand in for the Hub's, for every caller: nobody's own access may be needed for them.
            question = self.registries.manifest_question(image)
            self.gate.admit(repository_of(image), NOBODY, question)
        except WeightyardError as error:
            return f"its registry doesn't let everyone read it: {error.message}"
        return None

    def _newest_first(self) -> Iterator[tuple[Digest, Record]]:
        models = sorted(self.store.models.all(), key=lambda model: model.added, reverse=True)
        for model in models:
            try:
                record = self.store.models.record(model.key)
            except WeightyardError:
                continue  # damaged; `check` reports it
            # A foreign image names no source.
            if isinstance(record, Record):
                yield model.key, record


def unknown_revision(repo: str, revision: str) -> Declined:
    """The Hub's answer to a revision that it doesn't have, given while it is away."""
    message = (
        f"{repo} has no revision {revision} that this node knows, and the Hub can't be reached"
    )
    return Declined(404, "RevisionNotFound", message)
