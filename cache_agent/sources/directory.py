"""A mounted filesystem that all nodes share (NFS, Lustre, a hostPath) as a shared store."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_agent.sources.shared import missing
from cache_agent.sources.streams import DescriptorStream
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, NoSpace, Unreachable, WeightyardError
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream

CLAIM_SECONDS: Final = 3600.0
_FULL: Final = frozenset({28, 122})  # ENOSPC, EDQUOT


@dataclass(frozen=True)
class SharedDirectory:
    """`<path>/files/sha256/ab/<hex>`, as in a store. `clock`: wall time, assumed to be roughly equal on all nodes."""

    path: Path
    clock: Callable[[], float] = time.time

    @property
    def name(self) -> str:
        return str(self.path)

    @contextmanager
    def open(self, digest: Digest, wanted: ByteRange) -> Iterator[BlobStream]:
        """See `SharedStore.open`."""
        with self._mapped():
            try:
                fd = os.open(self._file(digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise missing(self.name, digest) from error
        stream = DescriptorStream(fd, wanted.start, wanted.stop)
        try:
            with self._mapped():
                yield stream
        finally:
            stream.end()

    def has(self, digest: Digest, size: int) -> bool:
        """See `SharedStore.has`."""
        with self._mapped():
            try:
                return self._file(digest).stat().st_size == size
            except FileNotFoundError:
                return False

    def claim(self, digest: Digest) -> bool:
        """See `SharedStore.claim`."""
        claim = self.path / "claims" / digest.hex
        with self._mapped():
            claim.parent.mkdir(parents=True, exist_ok=True)
            # Exclusive creation is atomic on a shared filesystem too: one node wins.
            try:
                claim.touch(exist_ok=False)
            except FileExistsError:
                if self.clock() - claim.stat().st_mtime < CLAIM_SECONDS:
                    return False
                # Taken over by touching it. Two nodes may both do so: each writes its own temporary file, no harm.
                os.utime(claim, (self.clock(), self.clock()))
        return True

    def put(self, digest: Digest, size: int, data: Iterator[memoryview]) -> None:
        """See `SharedStore.put`."""
        target = self._file(digest)
        # Unique: after an expired claim two nodes may write the same file.
        temporary = target.with_name(f".{digest.hex}.{uuid.uuid4().hex}")
        try:
            with self._mapped():
                target.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb", buffering=0) as file:
                    for buffer in data:
                        file.write(buffer)
                    # Before the rename: other nodes must never see the name without the bytes.
                    os.fsync(file.fileno())
                temporary.chmod(0o444)
                temporary.rename(target)
        finally:
            # The claim ends on failure too: another node then tries without waiting for its expiry.
            temporary.unlink(missing_ok=True)
            (self.path / "claims" / digest.hex).unlink(missing_ok=True)

    def _file(self, digest: Digest) -> Path:
        return self.path / "files" / "sha256" / digest.hex[:2] / digest.hex

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise AccessDenied(f"no access to {error.filename}", hint="Check the mount.") from error
        except OSError as error:
            raise self._of(error) from error

    def _of(self, error: OSError) -> WeightyardError:
        if error.errno in _FULL:
            return NoSpace(f"no space left on the shared directory {self.path}")
        return Unreachable(f"the shared directory {self.path} failed: {error.strerror}")
