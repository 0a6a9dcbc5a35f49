"""A file being downloaded: a data file of full size and a bitmap of the chunks verified so far.

A partial is named after all claims of its record about the file (sha256, size and chunk digests), so a forged record
that claims another file's sha256 never shares its partial. The bitmap is trusted only if its own checksum holds and it
was written since this boot: after a power loss pages that it marks may be missing, so chunks are verified again.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from cache_agent.chunks import chunk_range
from cache_agent.errors import DiskFailed
from cache_agent.observability.events import Events, FileDamaged
from cache_agent.store.disk import (
    SMALL_BYTES,
    Disk,
    is_plain_file,
    open_plain,
    plain_size,
    read_plain,
    reading,
)
from cache_agent.store.paths import StorePaths
from cache_agent.store.reservations import Reservation
from modelimage import canonical
from modelimage.digest import Digest
from modelimage.ranges import ByteRange
from modelimage.record import RecordFile

# Imported where a record is read: most commands read none, and foreign images have many modules.
if TYPE_CHECKING:
    from modelimage.foreign import AnyRecord

_MAGIC: Final = b"WYBITS1\n"
_CHECKSUM_BYTES: Final = 16
_BOOT_BYTES: Final = 36
READ_BUFFER: Final = 1 << 20


def identity(file: RecordFile) -> Digest:
    """The name of a partial: a digest of all claims about its file."""
    claims = {"sha256": file.digest.hex, "size": file.size, "blake3": list(file.chunks)}
    return Digest.of(canonical.to_bytes(claims))


@dataclass(frozen=True, slots=True)
class Bitmap:
    """The verified chunks of a file. Law: `decode(b.encode(boot), count) == (b, boot)`."""

    bits: bytes
    count: int

    @classmethod
    def of(cls, verified: set[int], count: int) -> Bitmap:
        bits = bytearray(-(-count // 8))
        for index in verified:
            bits[index // 8] |= 1 << index % 8
        return cls(bytes(bits), count)

    def chunks(self) -> set[int]:
        return {index for index in range(self.count) if self.bits[index // 8] >> index % 8 & 1}

    def encode(self, boot: str) -> bytes:
        """Encode the bitmap file: magic, boot id, count, bits, checksum."""
        head = _MAGIC + boot.encode().ljust(_BOOT_BYTES)[:_BOOT_BYTES]
        body = head + self.count.to_bytes(8, "little") + self.bits
        return body + blake3(body).digest(length=_CHECKSUM_BYTES)

    @classmethod
    def decode(cls, data: bytes, count: int) -> tuple[Bitmap, str] | None:
        """The bitmap and the boot id of its writer; None when it is damaged or belongs to another file."""
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        head = len(_MAGIC) + _BOOT_BYTES + 8
        if len(body) != head + -(-count // 8) or not body.startswith(_MAGIC):
            return None
        if blake3(body).digest(length=_CHECKSUM_BYTES) != checksum:
            return None
        if int.from_bytes(body[head - 8 : head], "little") != count:
            return None
        return cls(body[head:], count), body[len(_MAGIC) : head - 8].decode(
            errors="replace"
        ).strip()


class Partial:
    """One open partial. Safe for threads that write different chunks.

    `verified` grows only through `mark`, after the chunk's bytes were verified, and shrinks through `unmark`. `name` is
    used while the file is unknown: then `mark` only means that a chunk arrived, and `vouch` sets the file once its
    whole content is verified. `room`: the space that is reserved for what isn't there of it yet.
    """

    def __init__(
        self,
        file: RecordFile,
        paths: StorePaths,
        disk: Disk,
        boot: str,
        *,
        room: Reservation | None,
        name: Digest | None = None,
    ) -> None:
        self.file = file
        self.identity = name or identity(file)
        self.path = paths.partial_data(self.identity)
        self._bitmap_path = paths.partial_bitmap(self.identity)
        self._disk, self._boot = disk, boot
        # The bitmap is written as a whole: of two workers at once, one would write it without the other's chunk.
        self._lock = threading.Lock()
        self._fd, existed = self._allocate(room)
        self.verified: set[int] = self._recall() if existed else set()

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes and start their writeback: in small steps, since synchronous requests to a busy disk stall."""
        self._disk.pwrite(self._fd, self.path, data, offset)
        # A small file's bytes are flushed with those of many others: a request for each stalls on the journal.
        if self.file.size > SMALL_BYTES:
            self._disk.start_writeback(self._fd, offset, len(data))

    def mark(self, index: int) -> None:
        """Record that a chunk is written and verified."""
        with self._lock:
            # After the data: the bitmap may only claim chunks that are written and verified.
            self.verified.add(index)
            self._note()

    def unmark(self, index: int) -> None:
        """Revert `mark`: the chunk's bytes on the disk turned out wrong."""
        with self._lock:
            self.verified.discard(index)
            self._note()

    def vouch(self, file: RecordFile) -> None:
        """Set the file: all its bytes were hashed on this node, and the manifest names their layer."""
        self.file = file
        self.verified = set(range(file.chunk_count()))

    def arrived(self) -> set[int]:
        """A copy of the verified chunks, for threads that don't write."""
        with self._lock:
            return set(self.verified)

    def missing(self) -> list[int]:
        return [index for index in range(self.file.chunk_count()) if index not in self.verified]

    def read(self, wanted: ByteRange) -> Iterator[memoryview]:
        """Current bytes of a range; a buffer is valid until the next one."""
        yield from read_range(self._fd, self.path, wanted)

    def is_right(self, index: int, see: Callable[[memoryview], object] | None = None) -> bool:
        """Whether a chunk is readable and matches the record. `see` is called with its buffers."""
        if not self.file.chunks:
            return False
        hasher = blake3()
        try:
            for buffer in self.read(chunk_range(self.file.size, index)):
                hasher.update(buffer)
                if see is not None:
                    see(buffer)
        except DiskFailed:
            # Fetched again, like a wrong chunk.
            return False
        return bool(hasher.hexdigest() == self.file.chunks[index])

    def seal(self, *, durable: bool = True) -> None:
        """Make the data read-only and durable, before its rename; `durable` is False where the caller flushes."""
        self._disk.seal(self._fd, self.path, durable=durable)

    def forget(self) -> None:
        """Remove the bitmap: the data was renamed into the store, or is worthless."""
        self._disk.unlink(self._bitmap_path)

    def discard(self) -> None:
        """Remove data and bitmap."""
        self._disk.unlink(self.path)
        self.forget()

    def close(self) -> None:
        """Close the file. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _allocate(self, room: Reservation | None) -> tuple[int, bool]:
        """Open the file with all its blocks; returns its descriptor, and whether there was one."""
        with room.storing() if room is not None else nullcontext() as stored:
            # Before `open_partial`, which creates the file.
            before = plain_size(self.path)
            fd = self._disk.open_partial(self.path, self.file.size)
            if stored is not None:
                stored(self.file.size - (before or 0))
        return fd, before is not None

    def _note(self) -> None:
        # A single chunk is verified by reading it, for which a bitmap saves nothing.
        if self.file.chunk_count() > 1:
            bitmap = Bitmap.of(self.verified, self.file.chunk_count())
            self._disk.overwrite_small(self._bitmap_path, bitmap.encode(self._boot))

    def _recall(self) -> set[int]:
        count = self.file.chunk_count()
        claimed = set(range(count))
        if is_plain_file(self._bitmap_path):
            try:
                decoded = Bitmap.decode(read_plain(self._bitmap_path), count)
            except OSError:
                decoded = None  # like a damaged one: its chunks are verified again
            if decoded is not None:
                bitmap, boot = decoded
                if boot == self._boot:
                    return bitmap.chunks()
                claimed = bitmap.chunks()
        elif count > 1:
            # Data without a bitmap: no chunk was verified before the crash.
            return set()
        return {index for index in claimed if self.is_right(index)}


@dataclass(frozen=True, slots=True)
class StorePartials:
    """The partials of one store, and the journals of the pulls that write them. `boot` is the id of this boot."""

    paths: StorePaths
    disk: Disk
    boot: str
    events: Events

    def begin(self, record: AnyRecord) -> None:
        """Write the journal of a pull, so that its fetched chunks survive a restart."""
        self.disk.write_small(self.paths.journal(record.key), record.to_bytes())

    def end(self, record: AnyRecord) -> None:
        """Remove the journal: no pull of this record is running any more."""
        self.disk.unlink(self.paths.journal(record.key))

    def open(
        self, file: RecordFile, name: Digest | None = None, *, room: Reservation | None
    ) -> Partial:
        """Open a file's partial, new or continued; `name`: its identity, where the caller has computed it.

        `room`: the reservation that covers what isn't there of it. Raises NoSpace when the disk can't hold the file.
        """
        return Partial(file, self.paths, self.disk, self.boot, name=name, room=room)

    def size(self, name: Digest) -> int:
        """Size on disk of an earlier partial, by the identity of its file, in bytes."""
        return plain_size(self.paths.partial_data(name)) or 0

    def note_lost(self, file: RecordFile, index: int) -> None:
        """Report a chunk of a partial that changed on this disk and is fetched again."""
        detail = f"chunk {index} of a download changed on this disk; it is fetched again"
        self.events.emit(FileDamaged(file.digest.hex, detail))


def read_range(fd: int, path: Path, wanted: ByteRange) -> Iterator[memoryview]:
    """Yield a range of an open file in buffers, each valid until the next; short when the file is."""
    # O_DIRECT needs page-aligned buffers: anonymous memory is aligned.
    buffer = memoryview(mmap.mmap(-1, READ_BUFFER))
    offset = wanted.start
    while offset < wanted.stop:
        with reading(path):
            count = min(os.preadv(fd, [buffer], offset), wanted.stop - offset)
        if count == 0:
            return
        yield buffer[:count]
        offset += count


@contextmanager
def open_for_reading(path: Path, *, direct: bool = False) -> Iterator[int]:
    """A descriptor of a stored file; symbolic links are refused. Raises DiskFailed.

    `direct` bypasses the page cache where the filesystem can, to read the disk's own content.
    """
    with reading(path):
        try:
            fd = open_plain(path, os.O_NOFOLLOW | (os.O_DIRECT if direct else 0))
        except OSError as error:
            # Some filesystems (tmpfs) refuse O_DIRECT with EINVAL.
            if error.errno != errno.EINVAL:
                raise
            fd = open_plain(path, os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """The id of this boot of the machine."""
    with reading(path):
        return path.read_text().strip()
