"""The checker: verifies every invariant of a store. Every store test ends with it.

    files      each name in files/ is the sha256 of its bytes; a plain file, read-only, right size in the ledger
    models     each directory holds exactly its record's files, each a hard link to the store's inode, and the record
    ledger     lists exactly the files and models on the disk
    leases     are on models that exist
    partials   belong to a journal; each chunk marked in a bitmap is correct
    leftovers  none: no trash, no staging directory, no unreferenced file

Read-only; `repairer` acts on the findings.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from blake3 import blake3

from cache_agent.chunks import chunk_range
from cache_agent.errors import Vanished
from cache_agent.store.disk import (
    Disk,
    is_plain_file,
    is_real_directory,
    listed,
    read_plain,
    reading,
    scan,
    status_of,
)
from cache_agent.store.journal import JournalRefs, read_claims
from cache_agent.store.ledger import Ledger
from cache_agent.store.links import ModelLinks, descriptions, read_origin, read_record
from cache_agent.store.partials import Bitmap, open_for_reading, read_range
from cache_agent.store.paths import FILE_PREFIXES, StorePaths, parse_hex, used_prefixes
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotWritable
from modelimage.path_rules import RECORD_NAME
from modelimage.record import CHUNK_SIZE, RecordFile


class ViolationKind(Enum):
    """The kind of a finding. The value goes over the wire."""

    @property
    def advice(self) -> str:
        """The remedy for an operator."""
        return _ADVICE[self]

    WRONG_BYTES = "wrong bytes"
    UNREADABLE = "unreadable"
    FOREIGN = "foreign file"
    WRITABLE = "writable"
    LEDGER = "ledger differs from disk"
    MODEL = "model differs from its record"
    LEASE = "lease on no model"
    PARTIAL = "bad partial"
    LEFTOVER = "leftover"


_ADVICE = {
    ViolationKind.WRONG_BYTES: "--repair fetches the damaged chunks again; if it comes back, replace the disk",
    ViolationKind.UNREADABLE: "look at the kernel's log; --repair fetches the file again if the disk can be written",
    ViolationKind.FOREIGN: "--repair moves it to quarantine/",
    ViolationKind.WRITABLE: "--repair makes it read-only again; find out who changed it",
    ViolationKind.LEDGER: "--repair brings the ledger in line with the disk",
    ViolationKind.MODEL: "--repair links the store's files again, or sets the model aside for the next pull",
    ViolationKind.LEASE: "--repair ends it",
    ViolationKind.PARTIAL: "--repair removes it; the next pull fetches it again",
    ViolationKind.LEFTOVER: "--repair removes it; so does the next start",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One violated invariant."""

    kind: ViolationKind
    path: Path
    detail: str
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """Digests of a whole file as read from the disk: its sha256 and the BLAKE3 of its chunks."""

    sha256: Digest
    chunks: tuple[str, ...]
    size: int
    mtime_ns: int


def read_file(path: Path, pause: Callable[[int], None] = lambda count: None) -> FileVerdict:
    """Read a file once, bypassing the page cache, and compute all its digests. Raises DiskFailed.

    `pause` is called with the size of each buffer read, to limit the rate.
    """
    whole, chunks = hashlib.sha256(), []
    # Direct: the page cache would hide a damaged sector.
    with open_for_reading(path, direct=True) as fd:
        with reading(path):
            status = os.fstat(fd)
        size = status.st_size
        for index in range(-(-size // CHUNK_SIZE)):
            chunk = blake3()
            for view in read_range(fd, path, chunk_range(size, index)):
                whole.update(view)
                chunk.update(view)
                pause(len(view))
            chunks.append(str(chunk.hexdigest()))
    return FileVerdict(Digest(whole.hexdigest()), tuple(chunks), size, status.st_mtime_ns)


@dataclass
class Checker:
    """Checks one store. `quick` skips file contents; `busy` (pulls are running) skips partials and leftovers."""

    paths: StorePaths
    ledger: Ledger
    quick: bool = False
    busy: bool = False
    bytes_read: int = 0
    files: int = 0
    models: int = 0

    @property
    def links(self) -> ModelLinks:
        return ModelLinks(self.paths, Disk(), self.ledger)

    def run(self) -> list[Violation]:
        """All findings. Raises DiskFailed only when directories can't be listed."""
        return [
            *self._directories(),
            *self._files(),
            *self._models(),
            *self._leases(),
            *self._partials(),
            *self._leftovers(),
        ]

    def _directories(self) -> Iterator[Violation]:
        for path in self.paths.directories():
            if status_of(path) is not None and not is_real_directory(path):
                yield Violation(ViolationKind.FOREIGN, path, "in the place of a directory")

    def _files(self) -> Iterator[Violation]:
        directories = listed(self.paths.files)
        # One prefix at a time, to bound memory.
        for prefix in used_prefixes(directories, self.ledger.file_prefixes()):
            known = self.ledger.file_digests(prefix)
            for path in listed(self.paths.files / prefix):
                digest = parse_hex(path.name)
                if digest is None or digest.hex[:2] != prefix or not is_plain_file(path):
                    yield Violation(
                        ViolationKind.FOREIGN, path, "no file of a store has this name or kind"
                    )
                    continue
                self.files += 1
                size = known.pop(digest.hex, None)
                if size is None and (stored := self.ledger.file(digest)) is not None:
                    size = stored.size  # admitted since the ledger was asked
                yield from self._file(path, digest, size)
            for name in known:
                missing = self.paths.files / prefix / name
                if self.ledger.file(Digest(name)) is None or status_of(missing) is not None:
                    continue  # removed, or replaced, since the ledger was asked
                yield Violation(
                    ViolationKind.LEDGER, missing, "in the ledger, not on the disk", Digest(name)
                )
        for path in directories:
            if path.name not in FILE_PREFIXES or not is_real_directory(path):
                yield Violation(ViolationKind.FOREIGN, path, "not a directory of files")

    def _file(self, path: Path, digest: Digest, size: int | None) -> Iterator[Violation]:
        # Metadata first: a wrong mode or size is reported even when the bytes can't be read.
        status = status_of(path)
        if status is None:
            return  # removed since it was listed
        if status.st_mode & 0o222:
            yield Violation(
                ViolationKind.WRITABLE, path, f"mode {stat.S_IMODE(status.st_mode):o}", digest
            )
        if size is None:
            yield Violation(ViolationKind.LEDGER, path, "on the disk, not in the ledger", digest)
        elif size != status.st_size:
            detail = f"{status.st_size} bytes on the disk, {size} in the ledger"
            yield Violation(ViolationKind.LEDGER, path, detail, digest)
        if self.quick:
            return
        try:
            verdict = read_file(path)
        except Vanished:
            return
        except NotWritable as error:
            # A finding, not an error: one unreadable file must not end the check of all others.
            yield Violation(ViolationKind.UNREADABLE, path, error.message, digest)
            return
        self.bytes_read += verdict.size
        if verdict.sha256 != digest:
            yield Violation(
                ViolationKind.WRONG_BYTES, path, f"its bytes are {verdict.sha256}", digest
            )
            return
        # For correct bytes only: wrong ones are reported already.
        stored = self.ledger.file(digest)
        if stored is not None and stored.chunks and stored.chunks != verdict.chunks:
            yield Violation(
                ViolationKind.LEDGER, path, "chunk digests in the ledger are wrong", digest
            )

    def _models(self) -> Iterator[Violation]:
        known = {key.hex for key in self.ledger.model_keys()}
        for path in listed(self.paths.models):
            if path.name.startswith("."):
                continue  # reported as a leftover
            key = parse_hex(path.name)
            known.discard(path.name)
            self.models += 1
            found = list(self._model(path))
            # Published or removed while it was looked at.
            is_known = key is not None and self.ledger.has_model(key)
            if not is_known and status_of(path) is not None:
                yield Violation(ViolationKind.LEDGER, path, "on the disk, not in the ledger")
            if is_known or status_of(path) is not None:
                yield from found
        for name in known:
            path = self.paths.models / name
            if self.ledger.has_model(Digest(name)) and status_of(path) is None:
                yield Violation(ViolationKind.LEDGER, path, "in the ledger, not on the disk")

    def _model(self, path: Path) -> Iterator[Violation]:
        try:
            # Without a readable record nothing else about the directory can be judged.
            record = read_record(path / RECORD_NAME)
            read_origin(self.paths.origin(record.key))
        except (InvalidImage, NotWritable) as error:
            yield Violation(ViolationKind.MODEL, path, error.message)
            return
        # A valid record in the wrong directory would be served as another model.
        if record.key.hex != path.name:
            yield Violation(ViolationKind.MODEL, path, f"holds the record of {record.key}")
            return
        for found in self.links.extras(record, path):
            yield Violation(ViolationKind.MODEL, found, "isn't in the record")
        digests = {path / file.path: file.digest for file in record.files}
        for name in self.links.faults(record, path):
            yield Violation(ViolationKind.MODEL, name, "isn't the store's own", digests.get(name))
        rows = {file.digest for file in self.ledger.model_files(record.key)}
        if rows != {file.digest for file in record.files}:
            yield Violation(ViolationKind.LEDGER, path, "the ledger lists other files for it")

    def _leases(self) -> Iterator[Violation]:
        for lease in self.ledger.leases():
            if self.ledger.model(lease.model) is None:
                yield Violation(
                    ViolationKind.LEASE, self.paths.model(lease.model), f"held by {lease.holder}"
                )

    def _partials(self) -> Iterator[Violation]:
        claimed: dict[str, RecordFile | None] = {}
        # All journals first: any of them may claim a partial.
        for path in listed(self.paths.partial):
            if path.suffix == ".json":
                try:
                    claimed.update(read_claims(path).partials)
                except Vanished:
                    continue  # its pull has ended
                except (InvalidImage, NotWritable) as error:
                    yield Violation(ViolationKind.PARTIAL, path, error.message)
        for path in listed(self.paths.partial):
            if path.suffix == ".json" or self.busy:
                continue
            if not is_plain_file(path):
                yield Violation(ViolationKind.PARTIAL, path, "no plain file")
                continue
            if path.stem not in claimed:
                yield Violation(ViolationKind.LEFTOVER, path, "no pull's journal names it")
                continue
            file = claimed[path.stem]
            # A foreign image's chunks have no digests: its partials are trusted
            # only once their whole layer is verified.
            if file is not None and path.suffix == ".bitmap" and not self.quick:
                # A pull that began meanwhile may rename the data and remove the bitmap.
                with suppress(Vanished):
                    yield from self._bitmap(path, file)

    def _bitmap(self, path: Path, file: RecordFile) -> Iterator[Violation]:
        """Check a bitmap's chunks. A damaged bitmap isn't a finding, since it is
        ignored; one that marks a wrong chunk is."""
        with reading(path):
            decoded = Bitmap.decode(read_plain(path), file.chunk_count())
        data = path.with_suffix(".data")
        if decoded is None or not data.exists():
            return
        with open_for_reading(data) as fd:
            for index in sorted(decoded[0].chunks()):
                hashed = blake3()
                for view in read_range(fd, data, chunk_range(file.size, index)):
                    hashed.update(view)
                if hashed.hexdigest() != file.chunks[index]:
                    yield Violation(
                        ViolationKind.PARTIAL,
                        path,
                        f"lists chunk {index} as valid, but it is wrong",
                    )

    def _leftovers(self) -> Iterator[Violation]:
        # Running pulls own staging directories, files and journals that look exactly like leftovers.
        if self.busy:
            return
        # A journal protects files that no model references yet.
        wanted = {digest for journal in self._journals() for digest in journal.files}
        for stored in self.ledger.unreferenced_files():
            if stored.digest not in wanted:
                path = self.paths.file(stored.digest)
                yield Violation(ViolationKind.LEFTOVER, path, "no model holds it", stored.digest)
        models = {key.hex for key in self.ledger.model_keys()}
        journals = {journal.key.hex for journal in self._journals()}
        for path in descriptions(self.paths):
            if path.stem not in models | journals:
                yield Violation(ViolationKind.LEFTOVER, path, "of a model that isn't here")
        yield from self._pins()
        staging = [each for each in listed(self.paths.models) if each.name.startswith(".")]
        for path in (*listed(self.paths.trash), *staging):
            yield Violation(ViolationKind.LEFTOVER, path, "left by an interrupted step")

    def _pins(self) -> Iterator[Violation]:
        """Marks and rows that contradict each other. A mark without its model waits for the model's next pull."""
        plain, others = scan(self.paths.pins)
        for path in (*others, *(path for path in plain if parse_hex(path.name) is None)):
            yield Violation(ViolationKind.LEFTOVER, path, "no mark of a pin")
        models = self.ledger.models()
        noted = {path.name for path in plain} & {model.key.hex for model in models}
        pinned = {model.key.hex for model in models if model.pinned}
        for name in sorted(noted ^ pinned):
            where = "on the disk, not in the ledger" if name in noted else "in the ledger only"
            yield Violation(ViolationKind.LEDGER, self.paths.pins / name, f"a pin {where}")

    def _journals(self) -> Iterator[JournalRefs]:
        for path in listed(self.paths.partial):
            if path.suffix == ".json":
                try:
                    yield read_claims(path)
                except (InvalidImage, NotWritable):
                    continue  # reported by `_partials`
