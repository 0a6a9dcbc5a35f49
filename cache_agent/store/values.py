"""The values that a store speaks in. Frozen; times are seconds since the epoch, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from modelimage import canonical
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput, WeightyardError
from modelimage.reference import LayoutReference, RegistryReference


class HolderKind(Enum):
    """Who can hold a lease; the kind says how to find out whether the holder is still there."""

    POD = "pod"  # name: the pod's UID
    PROCESS = "process"  # name: pid/start time/boot id
    MANUAL = "manual"  # name: anything; ends only when released


@dataclass(frozen=True, slots=True)
class Holder:
    """`kind:name`. Law: `Holder.parse(str(h)) == h`."""

    kind: HolderKind
    name: str

    @classmethod
    def parse(cls, text: str) -> Holder:
        """Parse `pod:UID`, `process:PID/START/BOOT` or `manual:NAME`. Raises InvalidInput."""
        kind, colon, name = text.partition(":")
        try:
            parsed = HolderKind(kind)
        except ValueError as error:
            raise InvalidInput(
                f"not a lease holder: {text[:120]!r}", hint="Write pod:UID, or manual:NAME."
            ) from error
        if not colon or not name or len(name) > 500 or not name.isprintable():
            raise InvalidInput(f"a lease holder needs a name: {text[:120]!r}")
        return cls(parsed, name)

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.name}"


@dataclass(frozen=True, slots=True)
class Lease:
    """A promise that `model` is in use by `holder`."""

    id: str
    model: Digest
    holder: Holder
    since: float


@dataclass(frozen=True, slots=True)
class Use:
    """That a holder uses a model now, as the machine shows it. `lease`: the id its lease has, where that is known."""

    model: Digest
    holder: Holder
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model came from: the image as asked for, its repository, and the manifests that named it.

    Kept beside the model as its publish record, so that a lost ledger can be rebuilt.
    """

    image: str
    repository: str
    root: Digest
    manifest: Digest
    variant: str
    requested_variant: str | None = None

    def to_bytes(self) -> bytes:
        return canonical.to_bytes(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "repository": self.repository,
            "root": str(self.root),
            "manifest": str(self.manifest),
            "variant": self.variant,
            "requestedVariant": self.requested_variant,
        }

    @classmethod
    def parse(cls, data: bytes) -> Origin:
        """Raises InvalidImage."""
        return cls.from_json(canonical.parse(data, what="a publish record"))

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Origin:
        try:
            return cls(
                image=str(document["image"]),
                repository=str(document["repository"]),
                root=Digest.parse(document["root"]),
                manifest=Digest.parse(document["manifest"]),
                variant=str(document["variant"]),
                requested_variant=document["requestedVariant"],
            )
        except (KeyError, TypeError, AttributeError, WeightyardError) as error:
            raise InvalidImage(f"malformed publish record: {error!r}") from error


@dataclass(frozen=True, slots=True)
class ResolvedRef:
    """What an image's name led to when it was last asked, at `at`: the manifest `root`, and of it the model `key`."""

    key: Digest
    root: Digest
    at: float


def repository_of(reference: RegistryReference | LayoutReference) -> str:
    """What access was proven to: one repository of one registry, or one layout directory."""
    if isinstance(reference, RegistryReference):
        return f"{reference.registry}/{reference.repository}"
    return f"oci:{reference.path.resolve()}"


@dataclass(frozen=True, slots=True)
class Model:
    """A cached model. `size` counts all its files, shared with other models or not."""

    key: Digest
    path: Path
    variant: str
    image: str
    size: int
    files: int
    added: float
    last_used: float
    uses: float
    fetch_seconds: float
    pinned: bool = False
    leases: tuple[Lease, ...] = field(default=())
    verified: float = 0.0


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A weight file in `files/`: chunk digests are those that were verified here, empty when not known.

    `mtime_ns` is when its bytes were last written, as the filesystem said when they were verified: another time now
    means that somebody wrote to it.
    """

    digest: Digest
    size: int
    chunks: tuple[str, ...]
    verified: float
    mtime_ns: int = 0
