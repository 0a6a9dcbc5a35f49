"""Google Cloud Storage as an object store (needs the extra `gs`).

Objects are pinned by their generations. The service states a CRC32C for each, which is checked before a file is used.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from builder.sources.google_storage import Crc32c, GoogleStorage, GoogleStorageSettings, mapped
from builder.sources.objects import (
    BucketReference,
    ObjectSettings,
    ObjectSource,
    StoredObject,
    Write,
    parse_bucket,
)
from modelimage.errors import InvalidCheckpoint, NotFound, RemoteRefused, Unreachable
from modelimage.ranges import ByteRange
from modelimage.source_uris import GS

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
# Of each object only what is used: an object has many fields more, and a bucket thousands of objects.
_FIELDS: Final = "items(name,size,generation,crc32c,contentEncoding),nextPageToken"


def parse_gs(text: str) -> BucketReference:
    """Parse `gs://BUCKET[/PREFIX]`. Raises InvalidInput."""
    return parse_bucket(text, GS, _BUCKET)


def gs_source(
    reference: BucketReference,
    work: Path,
    settings: GoogleStorageSettings | None = None,
    transfer: ObjectSettings | None = None,
    *,
    page_size: int = 1000,
) -> ObjectSource:
    """The ModelSource of a prefix in a bucket; `work` stores fetched files. Connects on the first call."""
    store = GsObjects(reference.bucket, settings or GoogleStorageSettings(), page_size)
    return ObjectSource(reference, store, work, transfer)


class GsObjects:
    """An ObjectStore: one bucket of Google Cloud Storage."""

    def __init__(self, bucket: str, settings: GoogleStorageSettings, page_size: int = 1000) -> None:
        self._bucket = bucket
        self._settings = settings
        self._page_size = page_size
        # Readers start at once: each would look for credentials and make a client with connections of its own.
        self._lock = threading.Lock()
        self._made: GoogleStorage | None = None

    @property
    def endpoint(self) -> str:
        return self._service().endpoint

    def objects(self, folder: str) -> Iterator[StoredObject]:
        service = self._service()
        with mapped(f"{GS}{self._bucket}/{folder}"):
            yield from map(
                self._object,
                service.client.list_blobs(
                    self._bucket,
                    prefix=folder or None,
                    page_size=self._page_size,
                    fields=_FIELDS,
                    **service.sending,
                ),
            )

    def read(self, wanted: StoredObject, span: ByteRange, write: Write) -> None:
        what = f"{wanted.key!r} of {self._bucket}"
        service = self._service()
        blob = service.blob(self._bucket, wanted.key, int(wanted.pin))
        passed = _BoundedWriter(span, what, write)
        try:
            with mapped(what):
                # Raw: the stored bytes. Their checksum is compared once the whole object is there.
                blob.download_to_file(
                    passed,
                    start=span.start,
                    end=span.stop - 1,
                    raw_download=True,
                    checksum=None,
                    **service.sending,
                )
        except NotFound as error:
            raise InvalidCheckpoint(
                f"{what} was replaced or deleted while it was read",
                hint="Build again when nothing writes there.",
            ) from error
        if passed.left:
            raise Unreachable(
                f"Google Cloud Storage closed the connection in the middle of {what}",
                hint="Try again.",
            )

    def checksum(self, wanted: StoredObject) -> Crc32c | None:
        return Crc32c(wanted.content) if wanted.content else None

    def _object(self, blob: Any) -> StoredObject:
        # Compressed for browsers by `gcloud storage cp --gzip-local`: its bytes aren't the file's.
        if blob.content_encoding:
            raise InvalidCheckpoint(
                f"{blob.name!r} of {self._bucket} is stored with Content-Encoding {blob.content_encoding!r}",
                hint="Upload it again without compression.",
            )
        return StoredObject(blob.name, int(blob.size), str(blob.generation), blob.crc32c or "")

    def _service(self) -> GoogleStorage:
        with self._lock:
            if self._made is None:
                self._made = GoogleStorage(self._settings)
            return self._made


class _BoundedWriter:
    """What the client writes a range to: passes the bytes on, and refuses more than were asked for."""

    def __init__(self, span: ByteRange, what: str, write: Write) -> None:
        self.left = len(span)
        self._what = what
        self._write = write

    def write(self, data: bytes) -> None:
        # A server that ignores ranges would send the whole object, or its beginning in place of the middle.
        if len(data) > self.left:
            raise RemoteRefused(
                f"Google Cloud Storage sent a different range of {self._what} than requested"
            )
        self.left -= len(data)
        self._write(data)
