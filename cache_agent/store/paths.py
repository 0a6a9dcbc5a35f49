"""Paths below a store's root. Pure: no IO."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelimage.digest import Digest
from modelimage.errors import InvalidInput

# The directories of `files/`, by the first two digits of a digest, in order.
FILE_PREFIXES: Final = tuple(f"{number:02x}" for number in range(256))
STAGING_PREFIX: Final = ".new-"


@dataclass(frozen=True, slots=True)
class StorePaths:
    """The layout of one store, all on one filesystem."""

    root: Path

    @property
    def files(self) -> Path:
        return self.root / "files" / "sha256"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def records(self) -> Path:
        return self.root / "images" / "records"

    @property
    def origins(self) -> Path:
        return self.root / "images" / "origins"

    @property
    def pins(self) -> Path:
        return self.root / "images" / "pins"

    @property
    def documents(self) -> Path:
        """See `manifests`."""
        return self.root / "images" / "documents"

    @property
    def repositories(self) -> Path:
        """See `manifests`."""
        return self.root / "images" / "repositories"

    @property
    def partial(self) -> Path:
        return self.root / "partial"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def generation(self) -> Path:
        """See `generation`."""
        return self.root / "ledger.generation"

    @property
    def reserve(self) -> Path:
        """See `reserve`."""
        return self.root / "ledger.reserve"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def prewarm(self) -> Path:
        """The desired models of a machine without a cluster, one document each."""
        return self.root / "prewarm"

    @property
    def socket(self) -> Path:
        return self.root / "agent.sock"

    def marks(self) -> tuple[Path, ...]:
        """What nothing but a store has: any one of them is a store, or what damage has left of one."""
        return (self.ledger, self.generation, self.reserve, self.files, self.records)

    def directories(self) -> tuple[Path, ...]:
        """Every directory that a store always has, parents first."""
        return (
            self.root,
            self.root / "files",
            self.files,
            self.models,
            self.root / "images",
            self.records,
            self.origins,
            self.pins,
            self.documents,
            self.repositories,
            self.partial,
            self.trash,
            self.quarantine,
        )

    def file(self, digest: Digest) -> Path:
        # One join instead of four: it is asked for tens of thousands of times for one model.
        return Path(f"{self.root}/files/sha256/{digest.hex[:2]}/{digest.hex}")

    def model(self, key: Digest) -> Path:
        return self.models / key.hex

    def staging(self, key: Digest) -> Path:
        """Where a model directory is assembled before it becomes visible."""
        return self.models / f"{STAGING_PREFIX}{key.hex}"

    def record(self, key: Digest) -> Path:
        return self.records / f"{key.hex}.json"

    def origin(self, key: Digest) -> Path:
        """The publish record: a model's origin, kept to rebuild a lost ledger."""
        return self.origins / f"{key.hex}.json"

    def pin(self, key: Digest) -> Path:
        """The mark of a pinned model, kept to rebuild a lost ledger."""
        return self.pins / key.hex

    def journal(self, key: Digest) -> Path:
        """The journal of an unfinished pull."""
        return self.partial / f"{key.hex}.json"

    def partial_data(self, identity: Digest) -> Path:
        return self.partial / f"{identity.hex}.data"

    def partial_bitmap(self, identity: Digest) -> Path:
        return self.partial / f"{identity.hex}.bitmap"


def parse_hex(name: str) -> Digest | None:
    """The digest that a file name spells, or None."""
    try:
        return Digest(name)
    except InvalidInput:
        return None


def used_prefixes(directories: Iterable[Path], of_ledger: Set[str]) -> list[str]:
    """The FILE_PREFIXES that hold anything, by the directories of `files/` and by the ledger's files, in order.

    Asking for all 256 would take most of an almost empty store's opening.
    """
    used = {path.name for path in directories} | of_ledger
    return [prefix for prefix in FILE_PREFIXES if prefix in used]
