"""Downloads Hub files into the cache, each as a foreign image: an artifact with one layer.

The Hub's listing gives the sha256 of a weight file, so it can be a layer with a known digest and is pulled like any
other: in ranges over several connections, resumed after a crash, once per node for all callers, trusted once its sha256
was computed here, counted against the budget, evicted by value. Its image name is `<hub>/<repository>:<file>`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from cache_agent.fetch.pull import Pull
from cache_agent.fetch.readable import ready_layer
from cache_agent.fetch.values import PullRequest, ReadablePrefix
from cache_agent.servers.hub.hub_client import Declined
from cache_agent.servers.hub.repo_files import HubFile, RepoFiles
from cache_agent.servers.shared_pulls import SharedPulls
from cache_agent.store.roots import Roots
from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, NotFound
from modelimage.hub import repository_uri
from modelimage.ranges import ByteRange
from modelimage.reference import RegistryReference
from modelimage.repository import BlobStream

# Returns the readable prefix at a position; None when that position isn't readable yet.
Follow = Callable[[int], ReadablePrefix | None]
_ARTIFACT = "application/vnd.weightyard.hub.file.v1"
_CONFIG = Descriptor(mediatypes.OCI_EMPTY, Digest.of(b"{}"), 2)


@dataclass(frozen=True, slots=True)
class HubImage:
    """An `ImageReader` of one weight file of a listing, with the caller's own token."""

    endpoint: str
    listing: RepoFiles
    file: HubFile
    layer: Digest
    stream: Callable[[ByteRange], AbstractContextManager[BlobStream]]

    @property
    def reference(self) -> RegistryReference:
        """Its image name in the cache. Characters that registries forbid and the Hub allows are replaced."""
        parts = (
            re.sub(r"[^a-z0-9]+", "-", each).strip("-")
            for each in self.listing.repo.lower().split("/")
        )
        repository = "/".join(part or "x" for part in parts)
        tag = re.sub(r"[^A-Za-z0-9._-]", "_", self.file.path)[-128:].lstrip(".-")
        return RegistryReference(urlsplit(self.endpoint).netloc, repository, tag or "file")

    def resolve(self, name: str) -> Descriptor:
        data = self._manifest()
        return Descriptor(mediatypes.OCI_MANIFEST, Digest.of(data), len(data))

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self._manifest()

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        if descriptor.digest == _CONFIG.digest:
            yield io.BytesIO(b"{}")
            return
        span = wanted or ByteRange(0, descriptor.size)
        with _mapped(), self.stream(span) as stream:
            yield stream

    def tags(self) -> list[str]:
        return []

    def _manifest(self) -> bytes:
        """The manifest. It leaves out the commit, so that the same file at two commits is one image."""
        layer = Descriptor(
            "application/octet-stream", self.layer, self.file.size,
            annotations={mediatypes.ANNOTATION_TITLE: self.file.path},
        )  # fmt: skip
        document = {
            "schemaVersion": 2,
            "mediaType": mediatypes.OCI_MANIFEST,
            "artifactType": _ARTIFACT,
            "config": _CONFIG.to_json(),
            "layers": [layer.to_json()],
            "annotations": {mediatypes.ANNOTATION_SOURCE: repository_uri(self.listing.repo)},
        }
        return canonical.to_bytes(document)


@dataclass
class Fills:
    """Downloads Hub weight files into one node's cache, with at most one pull per file. Thread-safe."""

    store: Roots
    pulls: SharedPulls

    def begin(self, image: HubImage) -> Follow:
        """Start or join the pull of a file. The result returns its readable prefix and raises the pull's error."""
        request = PullRequest(image.reference, reader=image)
        pull = self.pulls.join((image.listing.repo, image.layer), request)
        return partial(self._ready, pull, image)

    def _ready(self, pull: Pull, image: HubImage, position: int) -> ReadablePrefix | None:
        # This pull's result, not whether the store has the file: another caller may have brought it. `result(0)` also
        # raises the error of a pull that failed.
        if pull.result(0) is not None:
            return ReadablePrefix(self.store.files.path(image.layer), image.file.size)
        return ready_layer(pull, image.layer, position)


@contextmanager
def _mapped() -> Iterator[None]:
    """Translate the Hub's refusals into the errors that a pull handles."""
    try:
        yield
    except Declined as error:
        if error.status in (401, 403):
            raise AccessDenied(error.message) from error
        if error.status == 404:
            raise NotFound(error.message) from error
        raise
