"""The store's value types. Frozen; times are seconds since the epoch, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from modelimage import canonical
from modelimage.bounds import MALFORMED
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput, WeightyardError
from modelimage.reference import LayoutReference, RegistryReference


class HolderKind(Enum):
    """Kinds of lease holders; the kind determines how to check whether the holder still exists."""

    POD = "pod"  # name: the pod's UID
    PROCESS = "process"  # name: pid/start time/boot id
    MANUAL = "manual"  # name: anything; ends only when released


@dataclass(frozen=True, slots=True)
class Holder:
    """A lease holder, `kind:name`. Law: `Holder.parse(str(h)) == h`."""

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
        # Bounded and printable: holders come from clients, and are logged.
        if not colon or not name or len(name) > 500 or not name.isprintable():
            raise InvalidInput(f"a lease holder needs a name: {text[:120]!r}")
        return cls(parsed, name)

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.name}"


@dataclass(frozen=True, slots=True)
class Lease:
    """A promise that `holder` is using `model`, which can't be evicted meanwhile.

    `pod`: namespace/name of a holder that is a pod; empty where it isn't known.
    """

    id: str
    model: Digest
    holder: Holder
    since: float
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Use:
    """A holder's current use of a model, as observed on this machine. `lease`: the id of its lease, where known.

    `pod`: namespace/name of a holder that is a pod, where known.
    """

    model: Digest
    holder: Holder
    lease: str | None = None
    pod: str = ""


@dataclass(frozen=True, slots=True)
class ImageOrigin:
    """A model's origin: the image as requested, its repository, and the manifests that name it.

    Kept beside the model as its publish record, to rebuild a lost ledger.
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
    def parse(cls, data: bytes) -> ImageOrigin:
        """Raises InvalidImage."""
        return cls.from_json(canonical.parse(data, what="a publish record"))

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> ImageOrigin:
        try:
            return cls(
                image=str(document["image"]),
                repository=str(document["repository"]),
                root=Digest.parse(document["root"]),
                manifest=Digest.parse(document["manifest"]),
                variant=str(document["variant"]),
                requested_variant=document["requestedVariant"],
            )
        except (*MALFORMED, WeightyardError) as error:
            raise InvalidImage(f"malformed publish record: {error!r}") from error


@dataclass(frozen=True, slots=True)
class ResolvedRef:
    """The last resolution of an image reference, at time `at`: the manifest `root`, and its model `key`."""

    key: Digest
    root: Digest
    at: float


def repository_of(reference: RegistryReference | LayoutReference) -> str:
    """The unit of access checks: one repository of one registry, or one layout directory."""
    if isinstance(reference, RegistryReference):
        return f"{reference.registry}/{reference.repository}"
    # Resolved: two spellings of a directory are one repository.
    return f"oci:{reference.path.resolve()}"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A cached model. `size` counts all its files, including those shared with other models."""

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
    """A weight file in `files/`. `chunks`: digests verified on this node, empty when unknown.

    `mtime_ns`: the modification time when the bytes were verified; another one now means that the file was written to.
    """

    digest: Digest
    size: int
    chunks: tuple[str, ...]
    verified: float
    mtime_ns: int = 0
