"""A checkpoint in an S3 bucket, or on a server with its API at AWS_ENDPOINT_URL.

The listing pins each object by its ETag and every read requires that ETag, so an object replaced during a build is
detected and never mixed. Objects are fetched in parallel ranges into the builder's own directory, where finished parts
survive a crash. boto3 finds the credentials; all of its exceptions are mapped here.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config

from builder.sources.interface import Advance, Listing, RemoteFile, SourceFile
from builder.sources.parts import PartFile
from builder.sources.s3errors import mapped
from modelimage import canonical
from modelimage.digest import Digest
from modelimage.durable import reading
from modelimage.errors import (
    InvalidCheckpoint,
    InvalidInput,
    NotFound,
    RemoteRefused,
    Unreachable,
)
from modelimage.ranges import ByteRange, parse_content_range

SCHEME: Final = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_READERS: Final = 8
# At most _AHEAD + 1 ranges of `ahead_size` bytes are in memory per file.
_AHEAD: Final = 2
_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.5
_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class S3Reference:
    """`s3://bucket[/prefix]`. Law: `parse_s3(str(r)) == r`."""

    bucket: str
    prefix: str = ""

    @property
    def folder(self) -> str:
        """The common prefix of the keys of its objects."""
        return f"{self.prefix}/" if self.prefix else ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def parse_s3(text: str) -> S3Reference:
    """Parse a reference given by a user. Raises InvalidInput."""
    bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
    if not _BUCKET.fullmatch(bucket) or any(ord(letter) < 32 for letter in prefix):
        raise InvalidInput(f"not a place in S3: {text[:200]!r}", hint="Write s3://BUCKET/PREFIX.")
    return S3Reference(bucket, prefix.strip("/"))


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach S3. `client` has arguments for `boto3.client`; `attempts` are boto3's own; times are in seconds."""

    client: Mapping[str, Any] = field(default_factory=dict)
    part_size: int = 32 << 20
    ahead_size: int = 8 << 20
    page_size: int = 1000
    attempts: int = 3
    timeout: float = 60.0
    pause: Callable[[float], None] = time.sleep


class S3Source:
    """A ModelSource for the objects below a prefix. `work` stores fetched files. Connects on the first call."""

    is_local = False

    def __init__(
        self, reference: S3Reference, work: Path, settings: S3Settings | None = None
    ) -> None:
        self._reference = reference
        self._work = work
        self._settings = settings or S3Settings()
        self._lock = threading.Lock()
        self._made: Any = None
        self._objects: dict[str, _Object] = {}
        self._revision = ""

    @property
    def uri(self) -> str:
        return str(self._reference)

    @property
    def revision(self) -> str:
        """A digest of paths, sizes and ETags: S3 has no commits, but this identifies the listing."""
        return self._revision

    def list(self) -> Listing:
        """List the objects; raises as ModelSource.list, and NotFound also for a prefix without objects."""
        files, ignored = [], {}
        objects: dict[str, _Object] = {}
        for entry in self._entries():
            path = str(entry["Key"]).removeprefix(self._reference.folder)
            found = _Object(str(entry["Key"]), int(entry["Size"]), str(entry["ETag"]))
            if not path or path.endswith("/"):
                ignored[path or "/"] = "a folder's marker"
                continue
            objects[path] = found
            files.append(SourceFile(path, found.size, self._claimed(entry, found)))
        if not files:
            raise NotFound(
                f"there is nothing below {self._reference}", hint="Check the prefix and the region."
            )
        self._objects = objects
        self._revision = _revision(objects)
        return Listing(tuple(sorted(files)), ignored)

    def fetch(self, file: SourceFile, advance: Advance) -> Path:
        if not self._objects:
            self.list()
        wanted = self._objects.get(file.path)
        if wanted is None:
            raise NotFound(f"{file.path!r} is not in {self._reference}")
        path = self._place(wanted, file.path)
        # The name includes the ETag, so an existing file is complete and current.
        if path.exists():
            with reading(path):
                advance(path.stat().st_size)
            return path
        with PartFile.open(path, wanted.size, self._settings.part_size) as parts:
            advance(parts.done_bytes)
            self._fill(parts, wanted, advance)
            parts.publish()
        return path

    def remote(self, file: SourceFile) -> RemoteFile | None:
        """Stream with ranges that are read ahead; None if an earlier build left the file here."""
        wanted = self._objects.get(file.path)
        if wanted is None or self._place(wanted, file.path).exists():
            return None
        identity = f"{self._endpoint()} {self._reference.bucket}/{wanted.key} {wanted.etag}"
        return RemoteFile(identity, lambda start: self._read_ahead(wanted, start))

    def _read_ahead(self, wanted: _Object, start: int) -> Iterator[bytes]:
        """The object from `start` on, in order, with a few ranges concurrently; only those are in memory."""
        step = self._settings.ahead_size
        spans = (
            ByteRange(at, min(wanted.size, at + step)) for at in range(start, wanted.size, step)
        )
        waiting: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(_AHEAD, thread_name_prefix="s3-ahead") as pool:
            try:
                for span in spans:
                    waiting.append(pool.submit(self._range, wanted, span))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                # The consumer may stop early. Ranges not started are dropped; leaving the pool waits for the others.
                for each in waiting:
                    each.cancel()

    def _range(self, wanted: _Object, span: ByteRange) -> bytes:
        return b"".join(self._continued(wanted, span))

    def _fill(self, parts: PartFile, wanted: _Object, advance: Advance) -> None:
        """Fetch the missing parts, several concurrently; the first error stops the others."""
        stopped = threading.Event()

        def part(number: int) -> None:
            if stopped.is_set():
                return
            try:
                self._part(parts, number, wanted, advance, stopped)
            except BaseException:
                stopped.set()
                raise

        with ThreadPoolExecutor(_READERS, thread_name_prefix="s3") as pool:
            running = [pool.submit(part, number) for number in parts.missing()]
            try:
                for each in running:
                    each.result()
            finally:
                # Also if this thread was interrupted: leaving the pool waits for parts, which stop at their next read.
                stopped.set()

    def _part(
        self,
        parts: PartFile,
        number: int,
        wanted: _Object,
        advance: Advance,
        stopped: threading.Event,
    ) -> None:
        """Fetch one part of a file."""
        span = parts.span(number)
        position = span.start
        for data in self._continued(wanted, span):
            # Without `mark`: an incomplete part is fetched again by the next run.
            if stopped.is_set():
                return
            parts.write(data, position)
            position += len(data)
            advance(len(data))
        parts.mark(number)

    def _continued(self, wanted: _Object, span: ByteRange) -> Iterator[bytes]:
        """The bytes of a range, resumed after broken connections."""
        position, attempt = span.start, 0
        while position < span.stop:
            try:
                for data in self._read(wanted, ByteRange(position, span.stop)):
                    position += len(data)
                    attempt = 0
                    yield data
            except Unreachable:
                # boto3 retries requests, but not a body that breaks off. Progress resets the count.
                attempt += 1
                if attempt == _ATTEMPTS:
                    raise
                self._settings.pause(_FIRST_PAUSE * 2 ** (attempt - 1))

    def _read(self, wanted: _Object, span: ByteRange) -> Iterator[bytes]:
        where = f"{wanted.key!r} of {self._reference.bucket}"
        with mapped(where):
            answer = self._client().get_object(
                Bucket=self._reference.bucket,
                Key=wanted.key,
                Range=span.header,
                # S3 answers 412 if the object was replaced since the listing.
                IfMatch=wanted.etag,
            )
            body = answer["Body"]
        try:
            # The range is checked before the first byte: these bytes have no digest until the whole file is there.
            told = parse_content_range(answer.get("ContentRange", ""))
            if told != (span, wanted.size):
                raise RemoteRefused(f"S3 sent another range of {where} than {span.header}")
            left = len(span)
            while left:
                with mapped(where):
                    data = body.read(min(_BUFFER, left))
                if not data:
                    raise Unreachable(f"S3 broke off {where}", hint="Try again.")
                left -= len(data)
                yield data
        finally:
            # Also after errors: an unread body would keep its connection out of the pool.
            body.close()

    def _entries(self) -> Iterator[Mapping[str, Any]]:
        with mapped(str(self._reference)):
            pages = self._client().get_paginator("list_objects_v2")
            arguments = {"Bucket": self._reference.bucket, "Prefix": self._reference.folder}
            sizes = {"PageSize": self._settings.page_size}
            for page in pages.paginate(**arguments, PaginationConfig=sizes):
                yield from page.get("Contents", ())

    def _claimed(self, entry: Mapping[str, Any], found: _Object) -> Digest | None:
        """The sha256 that S3 stores for an object, if its uploader had it computed over the whole object."""
        if "SHA256" not in entry.get("ChecksumAlgorithm", ()):
            return None
        # Only then is it worth one more request per object.
        with mapped(f"{found.key!r} of {self._reference.bucket}"):
            answer = self._client().head_object(
                Bucket=self._reference.bucket,
                Key=found.key,
                IfMatch=found.etag,
                ChecksumMode="ENABLED",
            )
        return _whole_checksum(answer)

    def _place(self, wanted: _Object, path: str) -> Path:
        """The local path of an object's bytes: its name is derived from everything that identifies them."""
        identity = [self._endpoint(), self._reference.bucket, wanted.key, wanted.size, wanted.etag]
        name = hashlib.sha256(canonical.to_bytes(identity)).hexdigest()
        suffix = re.search(r"\.[A-Za-z0-9]{1,16}$", path)
        return self._work / f"{name}{suffix[0] if suffix else ''}"

    def _endpoint(self) -> str:
        return str(self._client().meta.endpoint_url)

    def _client(self) -> Any:
        # One client for all threads: boto3's clients are thread-safe, its sessions aren't.
        with self._lock:
            if self._made is None:
                with mapped(str(self._reference)):
                    self._made = _client(self._settings)
            return self._made


def _client(settings: S3Settings) -> Any:
    config = Config(
        connect_timeout=settings.timeout,
        read_timeout=settings.timeout,
        retries={"mode": "standard", "total_max_attempts": settings.attempts},
        # Several files are fetched concurrently, each by all readers.
        max_pool_connections=4 * _READERS,
    )
    return boto3.session.Session().client("s3", config=config, **settings.client)


def _revision(objects: Mapping[str, _Object]) -> str:
    listed = [[path, each.size, each.etag] for path, each in sorted(objects.items())]
    return hashlib.sha256(canonical.to_bytes(listed)).hexdigest()


def _whole_checksum(answer: Mapping[str, Any]) -> Digest | None:
    text = answer.get("ChecksumSHA256", "")
    # For a multipart upload this is a checksum of checksums, and ends in the number of parts.
    if not text or "-" in text or answer.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    try:
        return Digest(base64.b64decode(text, validate=True).hex())
    except (ValueError, InvalidInput) as error:
        raise InvalidCheckpoint(f"S3 keeps a malformed checksum: {text[:80]!r}") from error
