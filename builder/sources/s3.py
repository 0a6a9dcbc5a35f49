"""Amazon S3, or a server with its API at AWS_ENDPOINT_URL, as an object store.

Objects are pinned by their ETags. boto3 finds the credentials; all of its exceptions are mapped here.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config

from builder.sources.objects import (
    READERS,
    BucketReference,
    ObjectSettings,
    ObjectSource,
    StoredObject,
    Write,
    parse_bucket,
)
from builder.sources.s3_errors import mapped
from modelimage.digest import Digest
from modelimage.errors import InvalidCheckpoint, InvalidInput, RemoteRefused, Unreachable
from modelimage.ranges import ByteRange, parse_content_range
from modelimage.source_uris import S3

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach S3. `client` has arguments for `boto3.client`; `attempts` are boto3's own; times are in seconds."""

    client: Mapping[str, Any] = field(default_factory=dict)
    page_size: int = 1000
    attempts: int = 3
    timeout: float = 60.0


def parse_s3(text: str) -> BucketReference:
    """Parse `s3://BUCKET[/PREFIX]`. Raises InvalidInput."""
    return parse_bucket(text, S3, _BUCKET)


def s3_source(
    reference: BucketReference,
    work: Path,
    settings: S3Settings | None = None,
    transfer: ObjectSettings | None = None,
) -> ObjectSource:
    """The ModelSource of a prefix in S3; `work` stores fetched files. Connects on the first call."""
    return ObjectSource(
        reference, S3Objects(reference.bucket, settings or S3Settings()), work, transfer
    )


class S3Objects:
    """An ObjectStore: one bucket of S3."""

    def __init__(self, bucket: str, settings: S3Settings) -> None:
        self._bucket = bucket
        self._settings = settings
        self._lock = threading.Lock()
        self._made: Any = None

    @property
    def endpoint(self) -> str:
        return str(self._client().meta.endpoint_url)

    def objects(self, folder: str) -> Iterator[StoredObject]:
        with mapped(f"{S3}{self._bucket}/{folder}"):
            pages = self._client().get_paginator("list_objects_v2")
            arguments = {"Bucket": self._bucket, "Prefix": folder}
            sizes = {"PageSize": self._settings.page_size}
            for page in pages.paginate(**arguments, PaginationConfig=sizes):
                yield from map(self._object, page.get("Contents", ()))

    def read(self, wanted: StoredObject, span: ByteRange, write: Write) -> None:
        where = f"{wanted.key!r} of {self._bucket}"
        with mapped(where):
            answer = self._client().get_object(
                Bucket=self._bucket,
                Key=wanted.key,
                Range=span.header,
                # S3 answers 412 if the object was replaced since the listing.
                IfMatch=wanted.pin,
            )
            body = answer["Body"]
        try:
            # The range is checked before the first byte: these bytes have no digest until the whole file is there.
            told = parse_content_range(answer.get("ContentRange", ""))
            if told != (span, wanted.size):
                raise RemoteRefused(f"S3 sent a different range of {where} than {span.header}")
            left = len(span)
            while left:
                with mapped(where):
                    data = body.read(min(_BUFFER, left))
                if not data:
                    raise Unreachable(
                        f"S3 closed the connection in the middle of {where}", hint="Try again."
                    )
                left -= len(data)
                write(data)
        finally:
            # Also after errors: an unread body would keep its connection out of the pool.
            body.close()

    def checksum(self, wanted: StoredObject) -> None:
        """None: a sha256 that S3 states is claimed instead, and an ETag isn't a checksum of a multipart upload."""

    def _object(self, entry: Mapping[str, Any]) -> StoredObject:
        key, etag = str(entry["Key"]), str(entry["ETag"])
        return StoredObject(key, int(entry["Size"]), etag, etag, self._claimed(entry, key, etag))

    def _claimed(self, entry: Mapping[str, Any], key: str, etag: str) -> Digest | None:
        """The sha256 that S3 stores for an object, if its uploader had it computed over the whole object."""
        if "SHA256" not in entry.get("ChecksumAlgorithm", ()):
            return None
        # Only then is it worth one more request per object.
        with mapped(f"{key!r} of {self._bucket}"):
            answer = self._client().head_object(
                Bucket=self._bucket, Key=key, IfMatch=etag, ChecksumMode="ENABLED"
            )
        return _whole_checksum(answer)

    def _client(self) -> Any:
        # One client for all threads: boto3's clients are thread-safe, its sessions aren't.
        with self._lock:
            if self._made is None:
                with mapped(f"{S3}{self._bucket}"):
                    self._made = _client(self._settings)
            return self._made


def _client(settings: S3Settings) -> Any:
    config = Config(
        connect_timeout=settings.timeout,
        read_timeout=settings.timeout,
        retries={"mode": "standard", "total_max_attempts": settings.attempts},
        # Several files are fetched concurrently, each by all readers.
        max_pool_connections=4 * READERS,
    )
    return boto3.session.Session().client("s3", config=config, **settings.client)


def _whole_checksum(answer: Mapping[str, Any]) -> Digest | None:
    text = answer.get("ChecksumSHA256", "")
    # For a multipart upload this is a checksum of checksums, and ends in the number of parts.
    if not text or "-" in text or answer.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    try:
        return Digest(base64.b64decode(text, validate=True).hex())
    except (ValueError, InvalidInput) as error:
        raise InvalidCheckpoint(f"S3 keeps a malformed checksum: {text[:80]!r}") from error
