"""A checkpoint below a prefix of an object store: the same source for every kind of store.

A store lists its objects and reads ranges of them; this module makes a ModelSource of it. The listing pins each object,
and every read requires that pin, so an object replaced during a build is detected and never mixed. Objects are fetched
in parallel ranges into the builder's own directory, where finished parts survive a crash.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from builder.sources.interface import Advance, Listing, RemoteFile, SourceFile
from builder.sources.parts import PartFile
from modelimage import canonical
from modelimage.digest import Digest
from modelimage.durable import reading
from modelimage.errors import InvalidCheckpoint, InvalidInput, NotFound, Unreachable
from modelimage.ranges import ByteRange

# Threads that read one file; several files are fetched concurrently.
READERS: Final = 8
# At most _AHEAD + 1 ranges of `ahead_size` bytes are in memory per file.
_AHEAD: Final = 2
_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.5
_BUFFER: Final = 1 << 20

Write = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class BucketReference:
    """`SCHEME://bucket[/prefix]`. Law: `parse_bucket(str(r), …) == r`."""

    scheme: str
    bucket: str
    prefix: str = ""

    @property
    def folder(self) -> str:
        """The common prefix of the keys of its objects."""
        return f"{self.prefix}/" if self.prefix else ""

    def __str__(self) -> str:
        return f"{self.scheme}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def parse_bucket(text: str, scheme: str, bucket_name: re.Pattern[str]) -> BucketReference:
    """Parse a reference given by a user. Raises InvalidInput."""
    bucket, _, prefix = text.removeprefix(scheme).partition("/")
    if not bucket_name.fullmatch(bucket) or any(ord(letter) < 32 for letter in prefix):
        raise InvalidInput(
            f"not a bucket and prefix: {text[:200]!r}", hint=f"Write {scheme}BUCKET/PREFIX."
        )
    return BucketReference(scheme, bucket, prefix.strip("/"))


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object. `pin`: what a read must match. `content`: identifies its bytes as far as the store states them."""

    key: str
    size: int
    pin: str
    content: str
    claimed: Digest | None = None


class Checksum(Protocol):
    """A running checksum of one object's bytes in order."""

    def update(self, data: bytes, /) -> object:
        """Add bytes."""

    def matches(self) -> bool:
        """Whether all bytes so far are the object's, according to its store."""


class ObjectStore(Protocol):
    """One bucket. Safe for threads. Connects on the first call.

    All methods raise NotFound, AccessDenied, RateLimited, Unreachable, RemoteRefused, InvalidInput for settings.
    """

    @property
    def endpoint(self) -> str:
        """The server's address: buckets of the same name elsewhere are others."""

    def objects(self, folder: str) -> Iterator[StoredObject]:
        """The objects whose keys begin with `folder`, in any order."""

    def read(self, wanted: StoredObject, span: ByteRange, write: Write) -> None:
        """Pass the bytes of a range to `write`, in order. Errors of `write` pass unchanged.

        Raises InvalidCheckpoint if the object isn't the pinned one any more. Bytes before Unreachable count.
        """

    def checksum(self, wanted: StoredObject) -> Checksum | None:
        """A checksum to compare with the store's; None if it states none."""


@dataclass(frozen=True, slots=True)
class ObjectSettings:
    """Sizes of ranges in bytes; `pause` waits before a broken read is continued, for a number of seconds."""

    part_size: int = 32 << 20
    ahead_size: int = 8 << 20
    pause: Callable[[float], None] = time.sleep


class ObjectSource:
    """A ModelSource for the objects below a prefix. `work` stores fetched files. Connects on the first call."""

    is_local = False

    def __init__(
        self,
        reference: BucketReference,
        store: ObjectStore,
        work: Path,
        settings: ObjectSettings | None = None,
    ) -> None:
        self._reference = reference
        self._store = store
        self._work = work
        self._settings = settings or ObjectSettings()
        self._objects: dict[str, StoredObject] = {}
        self._revision = ""

    @property
    def name(self) -> str:
        return self.uri

    @property
    def uri(self) -> str:
        return str(self._reference)

    @property
    def revision(self) -> str:
        """A digest of paths, sizes and what the store states of the bytes: buckets have no commits."""
        return self._revision

    def list(self) -> Listing:
        """List the objects; raises as ModelSource.list, and NotFound also for a prefix without objects."""
        files, ignored = [], {}
        objects: dict[str, StoredObject] = {}
        for found in self._store.objects(self._reference.folder):
            path = found.key.removeprefix(self._reference.folder)
            if not path or path.endswith("/"):
                ignored[path or "/"] = "a folder's marker"
                continue
            objects[path] = found
            files.append(SourceFile(path, found.size, found.claimed))
        if not files:
            raise NotFound(
                f"there is nothing below {self._reference}", hint="Check the bucket and the prefix."
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
        # The name includes the pin, so an existing file is complete and current.
        if path.exists():
            with reading(path):
                advance(path.stat().st_size)
            return path
        with PartFile.open(path, wanted.size, self._settings.part_size) as parts:
            advance(parts.done_bytes)
            self._fill(parts, wanted, advance)
            self._check(parts, wanted)
            parts.publish()
        return path

    def remote(self, file: SourceFile) -> RemoteFile | None:
        """Stream with ranges that are read ahead; None if an earlier build left the file here."""
        wanted = self._objects.get(file.path)
        if wanted is None or self._place(wanted, file.path).exists():
            return None
        identity = f"{self._store.endpoint} {self._reference.bucket}/{wanted.key} {wanted.pin}"
        return RemoteFile(identity, lambda start: self._checked(wanted, start))

    def _checked(self, wanted: StoredObject, start: int) -> Iterator[bytes]:
        """The object from `start` on; its last bytes only after the checksum matched, if all bytes pass here."""
        checksum = self._store.checksum(wanted) if start == 0 else None
        left = wanted.size - start
        for data in self._read_ahead(wanted, start):
            left -= len(data)
            if checksum is not None:
                checksum.update(data)
                if not left and not checksum.matches():
                    raise self._damaged(wanted)
            yield data

    def _read_ahead(self, wanted: StoredObject, start: int) -> Iterator[bytes]:
        """The object from `start` on, in order, with a few ranges concurrently; only those are in memory."""
        step = self._settings.ahead_size
        spans = (
            ByteRange(at, min(wanted.size, at + step)) for at in range(start, wanted.size, step)
        )
        waiting: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(_AHEAD, thread_name_prefix="objects-ahead") as pool:
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

    def _range(self, wanted: StoredObject, span: ByteRange) -> bytes:
        data = bytearray()
        self._continued(wanted, span, data.extend)
        return bytes(data)

    def _fill(self, parts: PartFile, wanted: StoredObject, advance: Advance) -> None:
        """Fetch the missing parts, several concurrently; the first error stops the others."""
        stopped = threading.Event()

        def part(number: int) -> None:
            if stopped.is_set():
                return
            try:
                self._part(parts, number, wanted, advance, stopped)
            except _Stopped:
                return
            except BaseException:
                # Without this part the file can't be completed: the others needn't arrive.
                stopped.set()
                raise

        with ThreadPoolExecutor(READERS, thread_name_prefix="objects") as pool:
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
        wanted: StoredObject,
        advance: Advance,
        stopped: threading.Event,
    ) -> None:
        """Fetch one part of a file. Raises _Stopped, without marking it, once `stopped` is set."""
        span = parts.span(number)
        position = span.start

        def write(data: bytes) -> None:
            nonlocal position
            if stopped.is_set():
                raise _Stopped
            parts.write(data, position)
            position += len(data)
            advance(len(data))

        self._continued(wanted, span, write)
        parts.mark(number)

    def _continued(self, wanted: StoredObject, span: ByteRange, write: Write) -> None:
        """Pass the bytes of a range to `write`, resumed after broken connections."""
        position, attempt = span.start, 0

        def count(data: bytes) -> None:
            nonlocal position, attempt
            write(data)
            position += len(data)
            attempt = 0

        while position < span.stop:
            try:
                self._store.read(wanted, ByteRange(position, span.stop), count)
            except Unreachable:
                # Clients retry requests, but not a body that breaks off. Progress resets the count.
                attempt += 1
                if attempt == _ATTEMPTS:
                    raise
                self._settings.pause(_FIRST_PAUSE * 2 ** (attempt - 1))

    def _check(self, parts: PartFile, wanted: StoredObject) -> None:
        """Compare all bytes with the store's checksum. Raises InvalidCheckpoint; the parts are then fetched again."""
        checksum = self._store.checksum(wanted)
        if checksum is None:
            return
        for data in parts.read(_BUFFER):
            checksum.update(data)
        if not checksum.matches():
            parts.forget()
            raise self._damaged(wanted)

    def _damaged(self, wanted: StoredObject) -> InvalidCheckpoint:
        return InvalidCheckpoint(
            f"the bytes of {wanted.key!r} don't have the checksum that {self._reference.bucket} states",
            hint="Build again: the object is fetched from its beginning.",
        )

    def _place(self, wanted: StoredObject, path: str) -> Path:
        """The local path of an object's bytes: its name is derived from everything that identifies them."""
        identity = [
            self._store.endpoint, self._reference.bucket, wanted.key, wanted.size, wanted.pin,
        ]  # fmt: skip
        name = hashlib.sha256(canonical.to_bytes(identity)).hexdigest()
        suffix = re.search(r"\.[A-Za-z0-9]{1,16}$", path)
        return self._work / f"{name}{suffix[0] if suffix else ''}"


class _Stopped(Exception):
    """Another part failed, so this one isn't needed."""


def _revision(objects: Mapping[str, StoredObject]) -> str:
    # Not by pin: the same bytes, uploaded again, have another, and are the same checkpoint.
    listed = [[path, each.size, each.content] for path, each in sorted(objects.items())]
    return hashlib.sha256(canonical.to_bytes(listed)).hexdigest()
