"""The ledger's read queries and the parsing of their rows. Holds no connection, changes nothing."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from cache_agent.errors import DiskFailed
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import Holder, Lease, ResolvedRef, StoredFile, StoredModel
from modelimage.bounds import MALFORMED
from modelimage.digest import Digest
from modelimage.errors import InvalidInput

Row = tuple[Any, ...]
MODEL_COLUMNS: Final = (
    "key, variant, image, size, files, added, last_used, uses, fetch_seconds, pinned"
)
_VARIABLES: Final = 500
_LEASES: Final = (
    "SELECT id, key, holder, since, IFNULL(pod, '') FROM leases LEFT JOIN lease_pods USING (id)"
)
_VERIFIED: Final = (
    "SELECT m.key, MIN(f.verified) FROM model_files m JOIN files f ON f.sha256 = m.sha256"
)


class LedgerDamaged(DiskFailed):
    """The ledger is unreadable or inconsistent; the store moves it aside and rebuilds it."""


class Queries(ABC):
    """Read queries. Raise LedgerDamaged, DiskFailed. Queries of several statements may see changes between them."""

    _paths: StorePaths

    @abstractmethod
    def _all(self, statement: str, *values: object) -> list[Row]:
        """All rows of one statement, from one snapshot."""

    def _one(self, statement: str, *values: object) -> Row:
        """The only row, or an empty one."""
        rows = self._all(statement, *values)
        return rows[0] if rows else ()

    def file(self, digest: Digest) -> StoredFile | None:
        row = self._one("SELECT * FROM files WHERE sha256 = ?", digest.hex)
        return self._files([row])[0] if row else None

    def file_prefixes(self) -> set[str]:
        """The first two hex digits of all files' digests."""
        return {
            str(prefix)
            for (prefix,) in self._all("SELECT DISTINCT substr(sha256, 1, 2) FROM files")
        }

    def sizes_of(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        """The sizes of those of these files that are stored."""
        found: dict[Digest, int] = {}
        # In parts: a statement has a limited number of variables.
        for start in range(0, len(digests), _VARIABLES):
            part = [digest.hex for digest in digests[start : start + _VARIABLES]]
            marks = ",".join("?" * len(part))
            rows = self._all(f"SELECT sha256, size FROM files WHERE sha256 IN ({marks})", *part)  # noqa: S608
            with self._parsed():
                found.update((Digest(name), int(size)) for name, size in rows)
        return found

    def file_digests(self, prefix: str) -> dict[str, int]:
        """Sizes by sha256 hex, of the files whose digest begins with two hex digits."""
        # `g` sorts after all hex digits: a range query uses the primary key's index.
        rows = self._all(
            "SELECT sha256, size FROM files WHERE sha256 >= ? AND sha256 < ?", prefix, prefix + "g"
        )
        with self._parsed():
            return {Digest(name).hex: int(size) for name, size in rows}

    def files_due(self, before: float, now: float, limit: int) -> list[StoredFile]:
        """Files last verified before `before`, or after `now` (the clock was set back), oldest first."""
        rows = self._all(
            "SELECT * FROM files WHERE verified < ? OR verified > ? ORDER BY verified, sha256 LIMIT ?",
            before,
            now,
            limit,
        )
        return self._files(rows)

    def unreferenced_files(self) -> list[StoredFile]:
        """Files of no model."""
        rows = self._all(
            "SELECT f.* FROM files f LEFT JOIN model_files m ON m.sha256 = f.sha256 WHERE m.sha256 IS NULL"
        )
        return self._files(rows)

    def stored_bytes(self) -> int:
        return int(self._one("SELECT COALESCE(SUM(size), 0) FROM files")[0])

    def file_count(self) -> int:
        return int(self._one("SELECT COUNT(*) FROM files")[0])

    def model(self, key: Digest) -> StoredModel | None:
        found = self._models("WHERE key = ?", key.hex)
        return found[0] if found else None

    def has_model(self, key: Digest) -> bool:
        return bool(self._one("SELECT 1 FROM models WHERE key = ?", key.hex))

    def models(self) -> list[StoredModel]:
        """All models, by key."""
        return self._models("")

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

    def sizes_by_model(self) -> dict[Digest, dict[Digest, int]]:
        """File sizes of every model that has files."""
        rows = self._all(
            "SELECT m.key, f.sha256, f.size FROM model_files m JOIN files f ON f.sha256 = m.sha256"
        )
        found: dict[str, dict[Digest, int]] = defaultdict(dict)
        with self._parsed():
            for key, name, size in rows:
                found[key][Digest(name)] = int(size)
            return {Digest(key): files for key, files in found.items()}

    def models_of(self, digest: Digest) -> list[Digest]:
        """The models that contain a file."""
        rows = self._all("SELECT key FROM model_files WHERE sha256 = ? ORDER BY key", digest.hex)
        with self._parsed():
            return [Digest(row[0]) for row in rows]

    def resolved_ref(self, image: str, variant: str | None) -> ResolvedRef | None:
        """The last resolution of an image reference; None when that model isn't stored."""
        row = self._one(
            "SELECT i.key, i.root, i.at FROM images i JOIN models m ON m.key = i.key"
            " WHERE i.image = ? AND i.variant = ?",
            image,
            variant or "",
        )
        with self._parsed():
            return ResolvedRef(Digest(row[0]), Digest(row[1]), float(row[2])) if row else None

    def images_of(self, key: Digest) -> list[str]:
        rows = self._all("SELECT image FROM images WHERE key = ? ORDER BY image", key.hex)
        return list(dict.fromkeys(row[0] for row in rows))

    def names_of(self, key: Digest) -> list[tuple[str, str | None]]:
        """The image references that resolve to a model, each with the variant that was asked for."""
        rows = self._all(
            "SELECT image, variant FROM images WHERE key = ? ORDER BY at DESC", key.hex
        )
        return [(image, variant or None) for image, variant in rows]

    def authorized_by(self, digest: Digest) -> set[str]:
        """The repositories that a file is known to have come from."""
        rows = self._all("SELECT DISTINCT repository FROM proofs WHERE sha256 = ?", digest.hex)
        return {row[0] for row in rows}

    def is_authorized(self, repository: str, layer: Digest, digest: Digest) -> bool:
        return bool(
            self._one(
                "SELECT 1 FROM proofs WHERE sha256 = ? AND repository = ? AND layer = ?",
                digest.hex,
                repository,
                layer.hex,
            )
        )

    def lease(self, lease_id: str) -> Lease | None:
        found = self._leases(self._all(f"{_LEASES} WHERE id = ?", lease_id))
        return found[0] if found else None

    def leases(self, key: Digest | None = None) -> list[Lease]:
        if key is None:
            return self._leases(self._all(f"{_LEASES} ORDER BY id"))
        return self._leases(self._all(f"{_LEASES} WHERE key = ? ORDER BY id", key.hex))

    def _leases(self, rows: list[Row]) -> list[Lease]:
        with self._parsed():
            return [
                Lease(row[0], Digest(row[1]), Holder.parse(row[2]), float(row[3]), str(row[4]))
                for row in rows
            ]

    def _models(self, where: str, *values: object) -> list[StoredModel]:
        """Models selected by a condition on their key, in three statements regardless of their number."""
        rows = self._all(f"SELECT {MODEL_COLUMNS} FROM models {where} ORDER BY key", *values)  # noqa: S608
        verified: dict[str, float] = dict(self._all(f"{_VERIFIED} {where} GROUP BY m.key", *values))
        leases: dict[Digest, list[Lease]] = defaultdict(list)
        for lease in self._leases(self._all(f"{_LEASES} {where} ORDER BY id", *values)):
            leases[lease.model].append(lease)
        with self._parsed():
            return [
                self._model(row, verified.get(row[0], 0.0), leases[Digest(row[0])]) for row in rows
            ]

    def _model(self, row: Row, verified: float, leases: Iterable[Lease]) -> StoredModel:
        variant, image, size, files, added, last_used, uses, fetch_seconds, pinned = row[1:]
        key = Digest(row[0])
        return StoredModel(
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
            leases=tuple(leases),
            verified=float(verified),
        )

    def _files(self, rows: Iterable[Row]) -> list[StoredFile]:
        with self._parsed():
            return [parsed_file(row) for row in rows]

    @contextmanager
    def _parsed(self) -> Iterator[None]:
        """Map invalid row values to LedgerDamaged."""
        try:
            yield
        except (*MALFORMED, InvalidInput) as error:
            raise LedgerDamaged(
                f"the ledger {self._paths.ledger} has malformed rows: {error}"
            ) from error


def parsed_file(row: Row) -> StoredFile:
    """Parse a row of the `files` table. Raises ValueError, TypeError, InvalidInput."""
    digest, size, chunks, verified, mtime_ns = row
    return StoredFile(
        Digest(digest), int(size), tuple(json.loads(chunks)), float(verified), int(mtime_ns)
    )
