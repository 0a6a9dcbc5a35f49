"""A registry repository as an ImageReader and ImageWriter."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from modelimage import canonical, mediatypes
from modelimage.bounds import parse_count
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import (
    DigestMismatch,
    InvalidImage,
    InvalidInput,
    NotFound,
    RemoteRefused,
)
from modelimage.ranges import ByteRange, parse_content_range
from modelimage.referrers import (
    LeaveOut,
    described_referrer,
    fallback_tag,
    gather,
    ignore,
    listed_entries,
    subject_of,
    with_referrer,
)
from modelimage.registry import answers
from modelimage.registry.blob_upload import BlobSender
from modelimage.registry.exchange import Body, Request, Response, Sender, WebOrigin
from modelimage.registry.lists import MAX_PAGE_BYTES, pages, referrer_entries
from modelimage.registry.profiles import RegistryProfile, profile_for
from modelimage.registry.retry import Backoff
from modelimage.registry.upload import Uploader
from modelimage.registry.upload_state import UploadStates
from modelimage.repository import MAX_MANIFEST_BYTES, BlobContent, BlobStream, StreamedContent

_ACCEPT: Final = ", ".join(sorted(mediatypes.MANIFEST_TYPES | mediatypes.INDEX_TYPES))
_TAGS_PER_PAGE: Final = 1000
# The statuses of registries, and of what stands before them, that don't support HEAD.
_NO_HEAD: Final = frozenset({400, 405, 501})


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """Options for writing a repository. `mount_from`: repositories of the same registry that may have the same blobs.

    `profile` None selects the profile for the host.
    """

    backoff: Backoff = field(default_factory=Backoff)
    uploads: UploadStates = field(default_factory=UploadStates)
    mount_from: Sequence[str] = ()
    profile: RegistryProfile | None = None


class RegistryRepository:
    """One repository of a registry. Safe for threads; connects only on the first call."""

    def __init__(
        self,
        sender: Sender,
        origin: WebOrigin,
        repository: str,
        options: RepositoryOptions | None = None,
    ) -> None:
        chosen = options or RepositoryOptions()
        self.origin = origin
        self.repository = repository
        self.sender = sender
        self._backoff = chosen.backoff
        self._base = f"{origin}/v2/{repository}/"
        self._place = f"{str(origin).partition('://')[2]}/{repository}"
        self._pull = frozenset({f"repository:{repository}:pull"})
        self._push = frozenset({f"repository:{repository}:pull,push"})
        self._delete = frozenset({f"repository:{repository}:delete,pull"})
        self._referrers_lock = threading.Lock()
        self._blobs = BlobSender(
            Uploader(sender, f"{self._base}blobs/uploads/", self._push),
            chosen.profile or profile_for(origin.host),
            backoff=chosen.backoff,
            uploads=chosen.uploads,
            mount_from=[source for source in chosen.mount_from if source != repository],
        )

    def __repr__(self) -> str:
        return f"RegistryRepository({self._base!r})"

    # Reading

    def resolve(self, name: str) -> Descriptor:
        """The manifest with a tag or digest. Raises NotFound, AccessDenied, Unreachable."""
        wanted = Digest.parse(name) if ":" in name else None
        response = self._send("HEAD", f"manifests/{name}", {"Accept": _ACCEPT})
        described = _described(response) if response.status == 200 else None
        # Without HEAD, the manifest itself is fetched below.
        if response.status == 200 or response.status in _NO_HEAD:
            response.discard()
        else:
            # The response to a HEAD has no body to quote.
            raise answers.refusal(response, f"image {self._named(name)}", self.origin)
        if described is None:
            described = self._resolve_by_reading(name)
        # A digest must never resolve to another manifest, whatever the registry's headers say.
        if wanted is not None and described.digest != wanted:
            raise DigestMismatch(f"{self.origin} returned {described.digest} for {wanted}")
        return described

    def manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest's verified bytes. Raises DigestMismatch, and InvalidImage above 4 MiB."""
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise InvalidImage(f"manifest {descriptor.digest} has {descriptor.size} bytes")
        data, _ = self._get_manifest(str(descriptor.digest), limit=descriptor.size)
        if len(data) != descriptor.size or Digest.of(data) != descriptor.digest:
            raise DigestMismatch(
                f"manifest {descriptor.digest} arrived from {self.origin} with other bytes",
                hint="Try again; if the error persists, push the image again.",
            )
        return data

    @contextlib.contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        """A blob or a range of it, not verified. Raises NotFound, AccessDenied, Unreachable, RemoteRefused.

        If the registry ignores the range, raises RemoteRefused, because the stream would contain other bytes.
        """
        headers = {"Range": wanted.header} if wanted else {}
        response = self._send("GET", f"blobs/{descriptor.digest}", headers)
        try:
            length = _promised(response, descriptor, wanted)
        except RemoteRefused:
            response.discard()
            raise
        if length is None:
            raise answers.refusal(
                response, f"blob {descriptor.digest} of {self._place}", self.origin
            )
        with contextlib.closing(response.stream(length)) as stream:
            yield stream

    def tags(self) -> list[str]:
        """All tags, sorted. Raises NotFound if the repository doesn't exist."""
        found: set[str] = set()
        first = Request("GET", f"{self._base}tags/list?n={_TAGS_PER_PAGE}", scopes=self._pull)
        for response in pages(self.sender, self.origin, first, "tags"):
            if response.status != 200:
                raise answers.refusal(response, f"tags of {self._place}", self.origin)
            page = canonical.parse(response.read(MAX_PAGE_BYTES), what="the list of tags")
            found.update(tag for tag in page.get("tags") or () if isinstance(tag, str))
        return sorted(found)

    def referrers(
        self, subject: Digest, artifact_type: str | None = None, leave_out: LeaveOut = ignore
    ) -> list[Descriptor]:
        """The manifests with this subject, of one type or all: from the referrers API and from the fallback tag.

        At most MAX_REFERRERS; `leave_out` is told of entries that can't be read, and of there being more.
        """
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        listed = referrer_entries(
            self.sender,
            self.origin,
            Request("GET", f"{self._base}referrers/{subject}{query}", scopes=self._pull),
            f"referrers of {self._named(str(subject))}",
        )

        def entries() -> Iterator[object]:
            yield from listed or ()
            # Also where the API has a list: a registry that got it later need not list what was attached before.
            yield from self._tagged(subject, leave_out)

        return gather(entries(), artifact_type, leave_out)

    # Writing

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the registry has the blob with its full length."""
        # The push scope, so that the upload that usually follows uses the same cached token.
        response = self._send("HEAD", f"blobs/{descriptor.digest}", scopes=self._push)
        # Without HEAD, an upload finds out: registries take a blob again that they have.
        if response.status == 404 or response.status in _NO_HEAD:
            response.discard()
            return False
        if response.status != 200:
            raise answers.refusal(
                response, f"blob {descriptor.digest} of {self._place}", self.origin
            )
        length = response.header("Content-Length")
        response.discard()
        return length is None or length == str(descriptor.size)

    def put_blob(self, content: BlobContent, progress: Callable[[int], None] | None = None) -> None:
        """Send a blob unless it exists; resume an upload interrupted in this process or an earlier one.

        `progress` gets counts whose sum is the blob's size, unless it already existed: bytes sent or mounted, negative
        for bytes that must be sent again.
        Raises DigestMismatch, AccessDenied, Unreachable, RemoteRefused; nothing is visible then.
        """
        if self.has_blob(content.descriptor):
            return
        self._blobs.send(
            content,
            f"{self._base}blobs/{content.descriptor.digest}",
            lambda: self.has_blob(content.descriptor),
            progress,
        )

    def put_streamed(
        self, content: StreamedContent, progress: Callable[[int], None] | None = None
    ) -> None:
        """Send a blob whose digest is known only after all of it was sent; otherwise as `put_blob`."""
        self._blobs.send_streamed(content, f"{self._base}blobs/{content.name}", progress)

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        """Store a manifest and point a tag at it. Raises NotFound if a blob or manifest it refers to is missing."""
        if Digest.of(data) != descriptor.digest or len(data) != descriptor.size:
            raise DigestMismatch(f"manifest {descriptor.digest} doesn't match its digest")
        document = canonical.parse(data, what=f"manifest {descriptor.digest}")
        subject = subject_of(document)
        for attempt in itertools.count(1):
            try:
                knows_referrers = self._put_manifest(
                    descriptor, data, tag or str(descriptor.digest)
                )
                break
            except DigestMismatch:
                # Our digest is right. docker-registry also returns DIGEST_INVALID while another client pushes a blob
                # of the manifest, because it reads that blob's link file half written.
                if not self._backoff.wait(attempt):
                    raise
        if subject is not None and not knows_referrers:
            # The fallback index is read, extended and replaced: without the lock, another thread's referrer is lost.
            with self._referrers_lock:
                self._list_referrer(subject, described_referrer(descriptor, document))

    def delete_manifest(self, digest: Digest) -> None:
        """Delete a manifest and its tags; no error if it doesn't exist. Raises RemoteRefused if that's disabled."""
        response = self._send("DELETE", f"manifests/{digest}", scopes=self._delete)
        if response.status == 405:
            response.discard()
            raise RemoteRefused(
                f"{self.origin} doesn't allow deletion", hint="Ask its operator to enable it."
            )
        # Idempotent: a manifest that doesn't exist is what the caller wants.
        if response.status not in (200, 202, 404):
            raise answers.refusal(response, f"deletion of {self._named(str(digest))}", self.origin)
        response.discard()

    # Inside

    def _put_manifest(self, descriptor: Descriptor, data: bytes, name: str) -> bool:
        """Store a manifest; return whether the registry itself recorded its subject."""
        response = self._send(
            "PUT",
            f"manifests/{name}",
            {"Content-Type": descriptor.media_type},
            body=Body.from_bytes(data),
            scopes=self._push,
        )
        if response.status not in (200, 201):
            raise answers.refusal(response, f"manifest {name} of {self._place}", self.origin)
        stored = response.header("Docker-Content-Digest")
        noted = response.header("OCI-Subject") is not None
        response.discard()
        # Some registries rewrite manifests; the image would then have another digest than the one we publish.
        if stored is not None and stored != str(descriptor.digest):
            raise RemoteRefused(f"{self.origin} stored manifest {descriptor.digest} as {stored}")
        return noted

    def _tagged(self, subject: Digest, leave_out: LeaveOut) -> list[object]:
        """The entries of the fallback tag's index; none if it is no index, which `leave_out` is then told."""
        try:
            return self._tagged_entries(subject)
        # Anyone who may push can move the tag.
        except (InvalidImage, DigestMismatch) as error:
            leave_out(error)
            return []

    def _tagged_entries(self, subject: Digest) -> list[object]:
        try:
            index = self.resolve(fallback_tag(subject))
            return listed_entries(self.manifest(index), what=f"index {index.digest}")
        except NotFound:
            return []

    def _list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        listed = self._tagged_entries(subject)
        index = with_referrer(listed, referrer)
        if index is not None:
            self._put_manifest(index.descriptor, index.data, fallback_tag(subject))

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        body: Body | None = None,
        scopes: frozenset[str] | None = None,
    ) -> Response:
        return self.sender.send(
            Request(method, self._base + path, headers or {}, body, scopes or self._pull)
        )

    def _resolve_by_reading(self, name: str) -> Descriptor:
        """Resolve with a GET, for registries whose HEAD response lacks digest, type or size."""
        data, media_type = self._get_manifest(name, limit=MAX_MANIFEST_BYTES)
        if media_type is None:
            media_type = str(canonical.parse(data, what=f"manifest {name}").get("mediaType", ""))
        if not mediatypes.is_speakable(media_type):
            raise InvalidImage(f"manifest {name} states no media type: {media_type[:80]!r}")
        return Descriptor(media_type, Digest.of(data), len(data))

    def _get_manifest(self, name: str, *, limit: int) -> tuple[bytes, str | None]:
        response = self._send("GET", f"manifests/{name}", {"Accept": _ACCEPT})
        if response.status != 200:
            raise answers.refusal(response, f"image {self._named(name)}", self.origin)
        media_type = _media_type(response)
        try:
            return response.read(limit), media_type
        except RemoteRefused as error:
            if limit == MAX_MANIFEST_BYTES:
                raise InvalidImage(f"manifest {name} has more than {limit} bytes") from error
            raise DigestMismatch(f"manifest {name} has more bytes than {limit}") from error

    def _named(self, name: str) -> str:
        separator = "@" if ":" in name else ":"
        return f"{self._place}{separator}{name}"


def _described(response: Response) -> Descriptor | None:
    """The descriptor from the headers of a HEAD response; None if they are incomplete."""
    media_type, length = _media_type(response), response.header("Content-Length")
    digest = response.header("Docker-Content-Digest")
    size = parse_count(length)
    # Some registries leave headers out of their answers to HEAD: the manifest is then read to describe it.
    if media_type is None or not size or digest is None:
        return None
    try:
        return Descriptor(media_type, Digest.parse(digest.strip()), size)
    except InvalidInput:
        return None


def _media_type(response: Response) -> str | None:
    value = (response.header("Content-Type") or "").partition(";")[0].strip()
    return value if value in mediatypes.MANIFEST_TYPES | mediatypes.INDEX_TYPES else None


def _promised(response: Response, descriptor: Descriptor, wanted: ByteRange | None) -> int | None:
    """The number of bytes in a response to a blob request; None for an error status. Raises RemoteRefused."""
    what = f"the answer for blob {descriptor.digest}"
    if response.status not in (200, 206):
        return None
    # Checked before any byte is used: a range has no digest, so wrong bytes would look like a damaged blob.
    encoding = response.header("Content-Encoding")
    if encoding not in (None, "", "identity"):
        raise RemoteRefused(f"{what} is encoded as {encoding[:40]!r}, which wasn't requested")
    expected = len(wanted) if wanted else descriptor.size
    whole = wanted is None or (wanted.start, wanted.stop) == (0, descriptor.size)
    if response.status == 200 and not whole:
        raise RemoteRefused(
            f"{what} is the whole blob, not the requested range",
            hint="Fetch from a registry or mirror that supports ranges.",
        )
    if response.status == 206:
        got = parse_content_range(response.header("Content-Range") or "")
        if (
            wanted is None
            or got is None
            or got[0] != wanted
            or got[1] not in (None, descriptor.size)
        ):
            raise RemoteRefused(f"{what} has a different range than requested")
    length = response.header("Content-Length")
    if length is not None and length != str(expected):
        raise RemoteRefused(f"{what} has {length} bytes instead of {expected}")
    return expected
