"""The ledger: SQLite beside the files, holding what the files can't say (leases, pins, use, proofs of access).

The files are the truth of what is stored; the ledger is the truth of who uses it. It is durable before an answer
is given (`synchronous=FULL`), and what it says of files can be rebuilt from them. One connection behind one lock;
callers compose steps inside `transaction()`, which is all or nothing. Holds no policy and opens no other file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from cache_agent.errors import DiskFailed
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import Holder, Lease, Model, Origin, StoredFile
from modelimage.digest import Digest
from modelimage.errors import InvalidInput, NoSpace, WeightyardError
from modelimage.foreign import AnyRecord
from modelimage.record import RecordFile

_VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE files (
    sha256 TEXT PRIMARY KEY, size INTEGER NOT NULL, chunks TEXT NOT NULL, verified REAL NOT NULL,
    mtime_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE models (
    key TEXT PRIMARY KEY, variant TEXT NOT NULL, image TEXT NOT NULL, size INTEGER NOT NULL,
    files INTEGER NOT NULL, added REAL NOT NULL, last_used REAL NOT NULL, uses REAL NOT NULL,
    fetch_seconds REAL NOT NULL, pinned INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE model_files (
    key TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (key, sha256)
) WITHOUT ROWID;
CREATE INDEX model_files_by_file ON model_files (sha256);
CREATE TABLE images (
    image TEXT NOT NULL, variant TEXT NOT NULL, key TEXT NOT NULL, root TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (image, variant)
) WITHOUT ROWID;
CREATE TABLE leases (
    id TEXT PRIMARY KEY, key TEXT NOT NULL, holder TEXT NOT NULL, since REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX leases_by_model ON leases (key);
CREATE TABLE proofs (
    sha256 TEXT NOT NULL, repository TEXT NOT NULL, layer TEXT NOT NULL,
    PRIMARY KEY (sha256, repository, layer)
) WITHOUT ROWID;
"""
_MODEL_COLUMNS: Final = (
    "key, variant, image, size, files, added, last_used, uses, fetch_seconds, pinned"
)


class LedgerDamaged(DiskFailed):
    """The ledger can't be read as what it should be; the store moves it aside and rebuilds it."""


class Ledger:
    """One open ledger. Safe for use from several threads. Raises LedgerDamaged, NoSpace, DiskFailed."""

    def __init__(self, paths: StorePaths) -> None:
        self._paths, self._path = paths, paths.ledger
        self._lock = threading.RLock()
        self._depth = 0
        with self._mapped():
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            with self._mapped():
                self._open()
        except WeightyardError:
            self._db.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other thread reads or writes the ledger meanwhile: for short steps that must not be seen in part."""
        with self._lock:
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is durable when this ends, or never happened. Nests; no other thread sees the middle."""
        with self._lock, self._mapped():
            if self._depth == 0:
                self._db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0 and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self._commit()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Inside a transaction: what is inside this happens whole or not at all, whatever becomes of the rest."""
        with self._lock, self._mapped():
            self._db.execute("SAVEPOINT one")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK TO one")
                    self._db.execute("RELEASE one")
                raise
            self._db.execute("RELEASE one")

    def file(self, digest: Digest) -> StoredFile | None:
        row = self._one("SELECT * FROM files WHERE sha256 = ?", digest.hex)
        return self._files([row])[0] if row else None

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
        self._run("DELETE FROM proofs WHERE sha256 = ?", digest.hex)

    def file_digests(self, prefix: str) -> dict[str, int]:
        """sha256 hex -> size of files whose digest begins with two hex digits."""
        rows = self._all(
            "SELECT sha256, size FROM files WHERE sha256 >= ? AND sha256 < ?", prefix, prefix + "g"
        )
        with self._parsed():
            return {Digest(name).hex: int(size) for name, size in rows}

    def files_due(self, before: float, now: float, limit: int) -> list[StoredFile]:
        """Files verified before a time, or after now (the clock was set back), oldest first."""
        rows = self._all(
            "SELECT * FROM files WHERE verified < ? OR verified > ? ORDER BY verified, sha256 LIMIT ?",
            before,
            now,
            limit,
        )
        return self._files(rows)

    def unreferenced_files(self) -> list[StoredFile]:
        """Files that no model holds."""
        rows = self._all(
            "SELECT f.* FROM files f LEFT JOIN model_files m ON m.sha256 = f.sha256 WHERE m.sha256 IS NULL"
        )
        return self._files(rows)

    def stored_bytes(self) -> int:
        return int(self._one("SELECT COALESCE(SUM(size), 0) FROM files")[0])

    def file_count(self) -> int:
        return int(self._one("SELECT COUNT(*) FROM files")[0])

    def put_model(self, model: Model, record: AnyRecord) -> None:
        """Add or replace a model's row; leases and the images that name it stay."""
        self._run(
            f"INSERT OR REPLACE INTO models ({_MODEL_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
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

    def model(self, key: Digest) -> Model | None:
        row = self._one(f"SELECT {_MODEL_COLUMNS} FROM models WHERE key = ?", key.hex)  # noqa: S608
        return self._model(row) if row else None

    def has_model(self, key: Digest) -> bool:
        return bool(self._one("SELECT 1 FROM models WHERE key = ?", key.hex))

    def models(self) -> list[Model]:
        """All models, by key."""
        rows = self._all(f"SELECT {_MODEL_COLUMNS} FROM models ORDER BY key")  # noqa: S608
        return [self._model(row) for row in rows]

    def model_keys(self, prefix: str = "") -> list[Digest]:
        rows = self._all(
            "SELECT key FROM models WHERE key >= ? AND key < ? ORDER BY key", prefix, prefix + "g"
        )
        with self._parsed():
            return [Digest(row[0]) for row in rows]

    def model_files(self, key: Digest) -> list[StoredFile]:
        rows = self._all(
            "SELECT f.* FROM model_files m JOIN files f ON f.sha256 = m.sha256 WHERE m.key = ? ORDER BY f.sha256",
            key.hex,
        )
        return self._files(rows)

    def models_of(self, digest: Digest) -> list[Digest]:
        """The models that hold a file."""
        rows = self._all("SELECT key FROM model_files WHERE sha256 = ? ORDER BY key", digest.hex)
        with self._parsed():
            return [Digest(row[0]) for row in rows]

    def set_pin(self, key: Digest, pinned: bool) -> None:
        self._run("UPDATE models SET pinned = ? WHERE key = ?", int(pinned), key.hex)

    def note_use(self, key: Digest, at: float) -> bool:
        """Count one more use; False when there is no such model."""
        counted = "UPDATE models SET last_used = MAX(last_used, ?), uses = uses + 1 WHERE key = ?"
        return self._run(counted, at, key.hex) > 0

    def put_image(self, origin: Origin, key: Digest, at: float) -> None:
        self._run(
            "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)",
            origin.image,
            origin.requested_variant or "",
            key.hex,
            origin.root.hex,
            at,
        )

    def image(self, image: str, variant: str | None) -> tuple[Digest, float] | None:
        """The model that an image last resolved to, and when."""
        row = self._one(
            "SELECT key, at FROM images WHERE image = ? AND variant = ?", image, variant or ""
        )
        with self._parsed():
            return (Digest(row[0]), float(row[1])) if row else None

    def images_of(self, key: Digest) -> list[str]:
        rows = self._all("SELECT image FROM images WHERE key = ? ORDER BY image", key.hex)
        return list(dict.fromkeys(row[0] for row in rows))

    def add_proofs(self, repository: str, files: Iterable[RecordFile]) -> None:
        """Note that these files came through these layers of a repository whose manifest the caller could read."""
        self._many(
            "INSERT OR IGNORE INTO proofs VALUES (?, ?, ?)",
            [(file.digest.hex, repository, file.layer.hex) for file in files],
        )

    def proven_by(self, digest: Digest) -> set[str]:
        """The repositories that a file is known to have come through."""
        rows = self._all("SELECT DISTINCT repository FROM proofs WHERE sha256 = ?", digest.hex)
        return {row[0] for row in rows}

    def is_proven(self, repository: str, layer: Digest, digest: Digest) -> bool:
        return bool(
            self._one(
                "SELECT 1 FROM proofs WHERE sha256 = ? AND repository = ? AND layer = ?",
                digest.hex,
                repository,
                layer.hex,
            )
        )

    def put_lease(self, lease: Lease) -> None:
        self._run(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)",
            lease.id,
            lease.model.hex,
            str(lease.holder),
            lease.since,
        )

    def drop_lease(self, lease_id: str) -> bool:
        return self._run("DELETE FROM leases WHERE id = ?", lease_id) > 0

    def lease(self, lease_id: str) -> Lease | None:
        found = self._leases(self._all("SELECT * FROM leases WHERE id = ?", lease_id))
        return found[0] if found else None

    def leases(self, key: Digest | None = None) -> list[Lease]:
        if key is None:
            return self._leases(self._all("SELECT * FROM leases ORDER BY id"))
        return self._leases(self._all("SELECT * FROM leases WHERE key = ? ORDER BY id", key.hex))

    def _leases(self, rows: list[tuple[Any, ...]]) -> list[Lease]:
        with self._parsed():
            return [
                Lease(row[0], Digest(row[1]), Holder.parse(row[2]), float(row[3])) for row in rows
            ]

    def _model(self, row: tuple[Any, ...]) -> Model:
        with self._parsed():
            key = Digest(row[0])
        oldest = self._one(
            "SELECT MIN(f.verified) FROM model_files m JOIN files f ON f.sha256 = m.sha256 WHERE m.key = ?",
            key.hex,
        )
        variant, image, size, files, added, last_used, uses, fetch_seconds, pinned = row[1:]
        with self._parsed():
            return Model(
                key=key,
                path=self._paths.model(key),
                variant=variant,
                image=image,
                size=int(size),
                files=int(files),
                added=float(added),
                last_used=float(last_used),
                uses=float(uses),
                fetch_seconds=float(fetch_seconds),
                pinned=bool(pinned),
                leases=tuple(self.leases(key)),
                verified=float(oldest[0] or 0.0),
            )

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA cache_size=-2048")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={_VERSION};COMMIT;")
        elif version != _VERSION:
            raise LedgerDamaged(f"the ledger {self._path} has version {version}, not {_VERSION}")
        (verdict,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise LedgerDamaged(f"the ledger {self._path} is damaged: {verdict}")
        # The pages may be in order and what stands in them not.
        self.models()
        with self._parsed():
            for row in self._db.execute("SELECT * FROM files"):
                _file(row)

    def _commit(self) -> None:
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _run(self, statement: str, *values: object) -> int:
        with self._lock, self._mapped():
            return self._db.execute(statement, values).rowcount

    def _many(self, statement: str, rows: Iterable[tuple[str, ...]]) -> None:
        with self._lock, self._mapped():
            self._db.executemany(statement, rows)

    def _one(self, statement: str, *values: object) -> tuple[Any, ...]:
        with self._lock, self._mapped():
            return self._db.execute(statement, values).fetchone() or ()

    def _all(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._mapped():
            return self._db.execute(statement, values).fetchall()

    def _files(self, rows: Iterable[tuple[Any, ...]]) -> list[StoredFile]:
        with self._parsed():
            return [_file(row) for row in rows]

    @contextmanager
    def _parsed(self) -> Iterator[None]:
        """What stands in a row isn't what was written there."""
        try:
            yield
        except (ValueError, TypeError, InvalidInput) as error:
            raise LedgerDamaged(f"the ledger {self._path} holds nonsense: {error}") from error

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
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


def _file(row: tuple[Any, ...]) -> StoredFile:
    digest, size, chunks, verified, mtime_ns = row
    return StoredFile(
        Digest(digest), int(size), tuple(json.loads(chunks)), float(verified), int(mtime_ns)
    )
