"""The ledger: SQLite beside the files, for facts that the files can't hold (leases, pins, use, proofs of access).

Files are the truth about content, the ledger about use. It is durable before a reply is sent (`synchronous=FULL`), and
its file and model rows can be rebuilt from the files. One connection writes, behind one lock; callers compose steps in
`transaction()`, which is atomic. A second one reads committed state, so that queries never wait for an fsync; the
writing thread reads through the first connection and sees its own changes. Holds no policy, opens no other file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cache_agent.errors import DiskFailed
from cache_agent.store.disk import is_plain_file, reading
from cache_agent.store.generation import GenerationMarker
from cache_agent.store.paths import StorePaths
from cache_agent.store.queries import MODEL_COLUMNS, LedgerDamaged, Queries, Row, parsed_file
from cache_agent.store.values import ImageOrigin, Lease, StoredFile, StoredModel
from modelimage.digest import Digest
from modelimage.errors import NoSpace, WeightyardError
from modelimage.record import RecordFile

# Imported where a record is read: most commands read none, and foreign images have many modules.
if TYPE_CHECKING:
    from modelimage.foreign import AnyRecord

_VERSION: Final = 2
_MODE: Final = 0o600
_TABLES: Final = ("files", "models", "model_files", "images", "leases", "proofs", "generation")
# Names of pods that hold leases: `explain` finds a pod by them after a restart. A table of its own, which agents of
# other releases neither miss nor mind, so that an upgrade and its way back keep the ledger.
_LEASE_PODS: Final = """
CREATE TABLE IF NOT EXISTS lease_pods (id TEXT PRIMARY KEY, pod TEXT NOT NULL) WITHOUT ROWID;
DELETE FROM lease_pods WHERE id NOT IN (SELECT id FROM leases);
"""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    sha256 TEXT PRIMARY KEY, size INTEGER NOT NULL, chunks TEXT NOT NULL, verified REAL NOT NULL,
    mtime_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (
    key TEXT PRIMARY KEY, variant TEXT NOT NULL, image TEXT NOT NULL, size INTEGER NOT NULL,
    files INTEGER NOT NULL, added REAL NOT NULL, last_used REAL NOT NULL, uses REAL NOT NULL,
    fetch_seconds REAL NOT NULL, pinned INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS model_files (
    key TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (key, sha256)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS model_files_by_file ON model_files (sha256);
CREATE TABLE IF NOT EXISTS images (
    image TEXT NOT NULL, variant TEXT NOT NULL, key TEXT NOT NULL, root TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (image, variant)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    id TEXT PRIMARY KEY, key TEXT NOT NULL, holder TEXT NOT NULL, since REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leases_by_model ON leases (key);
CREATE TABLE IF NOT EXISTS proofs (
    sha256 TEXT NOT NULL, repository TEXT NOT NULL, layer TEXT NOT NULL,
    PRIMARY KEY (sha256, repository, layer)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS generation (number INTEGER NOT NULL);
INSERT INTO generation SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM generation);
"""


class Ledger(Queries):
    """One open ledger. Thread-safe. Raises LedgerDamaged, NoSpace, DiskFailed.

    `lost`: what was committed before is missing in part: the ledger is older than its marker, or lacks tables.
    """

    def __init__(self, paths: StorePaths) -> None:
        self._paths, self._path = paths, paths.ledger
        # Two connections, each with a lock: a reader must not wait for a writer's fsync.
        self._lock, self._reading = threading.RLock(), threading.RLock()
        self._depth = 0
        self._changes = 0
        self._writer: int | None = None
        self.lost = False
        _make_private(self._path)
        with self._mapped():
            self._db = _connect(self._path)
        try:
            self._marker = GenerationMarker(paths.generation)
        except WeightyardError:
            self._db.close()
            raise
        try:
            with self.writing(), self._mapped():
                self._open()
                self._reader = _connect(self._path)
                # A query with a bug must not write past the writer's lock.
                self._reader.execute("PRAGMA query_only=ON")
        except WeightyardError:
            self._marker.close()
            self._db.close()
            raise

    def close(self) -> None:
        with self._lock, self._reading:
            # The last connection to close checkpoints the WAL, which a read-only one can't: close the reader first.
            self._reader.close()
            self._db.close()
            self._marker.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Exclude other writers; readers see the state committed before."""
        with self._lock:
            # `_all` needs it: only the writing connection shows the writer its uncommitted changes.
            before, self._writer = self._writer, threading.get_ident()
            try:
                yield
            finally:
                self._writer = before

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Exclude other readers and writers: for short steps whose intermediate state must stay invisible."""
        # Always in this order, writer before reader: the reverse could deadlock.
        with self.writing(), self._reading:
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block atomically and durably. Nests; other threads never see the intermediate state."""
        with self.writing(), self._mapped():
            if self._depth == 0:
                # IMMEDIATE takes SQLite's write lock now; a deferred transaction could fail in its middle.
                self._db.execute("BEGIN IMMEDIATE")
                self._changes = self._db.total_changes
            self._depth += 1
            try:
                yield
            except BaseException:
                # BaseException: an interrupted thread must roll back too.
                self._depth -= 1
                if self._depth == 0 and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._depth -= 1
            # Only the outermost level commits: a caller's larger step must not become visible in parts.
            if self._depth == 0:
                self._commit()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Inside a transaction: make the block atomic, independent of the rest of the transaction."""
        with self.writing(), self._mapped():
            self._db.execute("SAVEPOINT one")
            try:
                yield
            except BaseException:
                # SQLite may have rolled the whole transaction back by itself (disk full).
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK TO one")
                    self._db.execute("RELEASE one")
                raise
            self._db.execute("RELEASE one")

    def put_file(self, file: StoredFile) -> None:
        self._run(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
            file.digest.hex,
            file.size,
            json.dumps(file.chunks),
            file.verified,
            file.mtime_ns,
        )

    def drop_file(self, digest: Digest) -> None:
        self._run("DELETE FROM files WHERE sha256 = ?", digest.hex)
        # Proofs end with the file: a file fetched again must prove its origin again.
        self._run("DELETE FROM proofs WHERE sha256 = ?", digest.hex)

    def put_model(self, model: StoredModel, record: AnyRecord) -> None:
        """Add or replace a model's row, without touching its leases and image names."""
        self._run(
            f"INSERT OR REPLACE INTO models ({MODEL_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
            model.key.hex, model.variant, model.image, model.size, model.files,
            model.added, model.last_used, model.uses, model.fetch_seconds, int(model.pinned),
        )  # fmt: skip
        self._run("DELETE FROM model_files WHERE key = ?", model.key.hex)
        self._many(
            "INSERT OR IGNORE INTO model_files VALUES (?, ?)",
            [(model.key.hex, file.digest.hex) for file in record.files],
        )

    def drop_model(self, key: Digest) -> None:
        for table in ("models", "model_files", "images"):
            self._run(f"DELETE FROM {table} WHERE key = ?", key.hex)  # noqa: S608

    def set_pin(self, key: Digest, pinned: bool) -> None:
        self._run("UPDATE models SET pinned = ? WHERE key = ?", int(pinned), key.hex)

    def note_use(self, key: Digest, at: float) -> bool:
        """Count one use; False when there is no such model."""
        # MAX: a clock that was set back must not make a model look unused.
        counted = "UPDATE models SET last_used = MAX(last_used, ?), uses = uses + 1 WHERE key = ?"
        return self._run(counted, at, key.hex) > 0

    def put_image(self, origin: ImageOrigin, key: Digest, at: float) -> None:
        self._run(
            "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)",
            origin.image,
            origin.requested_variant or "",
            key.hex,
            origin.root.hex,
            at,
        )

    def add_authorizations(self, repository: str, files: Iterable[RecordFile]) -> None:
        """Record that these files came from these layers of a repository whose
        manifest the caller was authorized to read."""
        self._many(
            "INSERT OR IGNORE INTO proofs VALUES (?, ?, ?)",
            [(file.digest.hex, repository, file.layer.hex) for file in files],
        )

    def put_lease(self, lease: Lease) -> None:
        self._run(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)",
            lease.id,
            lease.model.hex,
            str(lease.holder),
            lease.since,
        )
        if lease.pod:
            self._run("INSERT OR REPLACE INTO lease_pods VALUES (?, ?)", lease.id, lease.pod)

    def drop_lease(self, lease_id: str) -> bool:
        self._run("DELETE FROM lease_pods WHERE id = ?", lease_id)
        return self._run("DELETE FROM leases WHERE id = ?", lease_id) > 0

    def _open(self) -> None:
        # WAL: readers go on while a transaction is written.
        self._db.execute("PRAGMA journal_mode=WAL")
        # FULL: a granted lease must survive a power loss.
        self._db.execute("PRAGMA synchronous=FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            # Treated like damage: the ledger is rebuilt from the files.
            raise LedgerDamaged(f"the ledger {self._path} has version {version}, not {_VERSION}")
        (verdict,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise LedgerDamaged(f"the ledger {self._path} is damaged: {verdict}")
        self._complete(is_new=version == 0)
        self._compare_generation()
        # Intact pages may still hold invalid values: parse every row before trusting the ledger.
        self.models()
        with self._parsed():
            for row in self._db.execute("SELECT * FROM files"):
                parsed_file(row)

    def _complete(self, *, is_new: bool) -> None:
        """Create the tables that a new ledger lacks, and those that another one lost."""
        there = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        lacking = set(_TABLES) - there
        if lacking:
            # One transaction: a crash must not leave half a schema.
            self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={_VERSION};COMMIT;")
            self.lost = not is_new
        self._db.executescript(f"BEGIN;{_LEASE_PODS}COMMIT;")

    def _compare_generation(self) -> None:
        # The marker first: what another process commits between the two reads must not look like a loss.
        marked = self._marker.read()
        (number,) = self._db.execute("SELECT number FROM generation").fetchone()
        if marked > number:
            self.lost = True
            # Beyond the marker, so that the loss is noticed once.
            self._db.execute("UPDATE generation SET number = ?", (marked + 1,))
        self._marker.write(max(marked, number))

    def _commit(self) -> None:
        try:
            number = None
            # A transaction that only read must not cost a flush.
            if self._db.total_changes != self._changes:
                counted = "UPDATE generation SET number = number + 1 RETURNING number"
                ((number,),) = self._db.execute(counted).fetchall()
            self._db.execute("COMMIT")
            if number is not None:
                # Committed: a marker that can't follow only proves less.
                with suppress(WeightyardError):
                    self._marker.write(number)
        except sqlite3.Error:
            # SQLite may keep the transaction open after a failed COMMIT (disk full); the next BEGIN would then fail.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _run(self, statement: str, *values: object) -> int:
        with self._changing():
            return self._db.execute(statement, values).rowcount

    def _many(self, statement: str, rows: Iterable[tuple[str, ...]]) -> None:
        with self._changing():
            self._db.executemany(statement, rows)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The caller's transaction, or one of its own: every commit is counted."""
        with self._lock, self._mapped() if self._depth else self.transaction():
            yield

    def _all(self, statement: str, *values: object) -> list[Row]:
        if self._writer == threading.get_ident():
            with self._mapped():
                return self._db.execute(statement, values).fetchall()
        with self._reading, self._mapped():
            return self._reader.execute(statement, values).fetchall()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            # By its words: SQLite reports a full disk, damage and missing tables as one class.
            if "full" in str(error):
                raise NoSpace(f"no space left for the ledger {self._path}") from error
            if "malformed" in str(error) or "no such" in str(error):
                raise LedgerDamaged(f"the ledger {self._path} is damaged: {error}") from error
            raise DiskFailed(f"the ledger {self._path} can't be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise LedgerDamaged(
                f"the ledger {self._path} is damaged: {error}",
                hint="It is rebuilt from the files at the next start.",
            ) from error


def _make_private(path: Path) -> None:
    """Create the ledger's file for this user only; SQLite gives its log the same mode."""
    # Before SQLite opens them: a mode that is corrected afterwards leaves a moment in which others can read.
    for suffix in ("", "-wal", "-shm"):
        each = path.with_name(path.name + suffix)
        if suffix and not is_plain_file(each):
            continue
        with reading(each):
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if suffix else os.O_CREAT)
            fd = os.open(each, flags, _MODE)
            try:
                os.fchmod(fd, _MODE)
            finally:
                os.close(fd)


def _connect(path: Path) -> sqlite3.Connection:
    # Transactions begin where `transaction` says, and the locks keep threads apart: SQLite needs to do neither.
    made = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    made.execute("PRAGMA cache_size=-2048")
    return made
