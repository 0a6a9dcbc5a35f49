"""The limits and upload styles of known registries. Pure: host name to profile.

Sources are the registries' documentation and issue trackers; docs/registries.md lists them and the tests made.
Unlisted registries are tried with chunks first, then with a single request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final

MIB: Final = 1 << 20
GIB: Final = 1 << 30
DEFAULT_CHUNK: Final = 64 * MIB


class UploadStyle(Enum):
    """How a blob is uploaded."""

    MONOLITHIC = "one request"
    CHUNKED = "chunks"


@dataclass(frozen=True, slots=True)
class RegistryLimits:
    """Limits of a registry; None if no limit is known. Sizes in bytes, times in seconds."""

    layer_bytes: int | None = None
    upload_seconds: int | None = None
    manifest_bytes: int | None = 4 * MIB
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class RegistryProfile:
    """One kind of registry. `hosts` are patterns with `*`; if CHUNKED, blobs above `chunk_bytes` are sent in chunks."""

    name: str
    hosts: tuple[str, ...]
    style: UploadStyle
    limits: RegistryLimits = field(default_factory=RegistryLimits)
    chunk_bytes: int = DEFAULT_CHUNK


UNLISTED: Final = RegistryProfile("unlisted", ("*",), UploadStyle.CHUNKED)

PROFILES: Final = (
    # Chunks above 4 MiB get status 416; an upload is ended after ten minutes.
    RegistryProfile(
        "GitHub Container Registry",
        ("ghcr.io",),
        UploadStyle.MONOLITHIC,
        RegistryLimits(layer_bytes=10 * 10**9, upload_seconds=600),
    ),
    # The first chunk is treated as if it were the last (201).
    RegistryProfile(
        "Amazon ECR",
        ("*.dkr.ecr.*.amazonaws.com", "*.dkr.ecr.*.amazonaws.com.cn", "*.dkr-ecr.*.on.aws"),
        UploadStyle.MONOLITHIC,
        RegistryLimits(layer_bytes=52_000 * MIB),
    ),
    RegistryProfile(
        "Amazon ECR Public",
        ("public.ecr.aws",),
        UploadStyle.MONOLITHIC,
        RegistryLimits(layer_bytes=10_000 * MIB),
    ),
    # Doesn't support chunks.
    RegistryProfile(
        "Google Artifact Registry",
        ("*.pkg.dev", "gcr.io", "*.gcr.io"),
        UploadStyle.MONOLITHIC,
    ),
    RegistryProfile(
        "Azure Container Registry",
        ("*.azurecr.io", "*.azurecr.cn", "*.azurecr.us"),
        UploadStyle.MONOLITHIC,
        RegistryLimits(layer_bytes=200 * GIB, manifest_bytes=4 * MIB),
    ),
    RegistryProfile(
        "Quay", ("quay.io",), UploadStyle.MONOLITHIC, RegistryLimits(layer_bytes=50 * 10**9)
    ),
    RegistryProfile(
        "GitLab",
        ("registry.gitlab.com",),
        UploadStyle.CHUNKED,
        RegistryLimits(manifest_bytes=4 * MIB),
    ),
    RegistryProfile("Docker Hub", ("docker.io", "registry-1.docker.io"), UploadStyle.CHUNKED),
    # Recognized by name only: a Harbor can have any host name, but often has the word in it.
    RegistryProfile(
        "Harbor",
        ("harbor.*", "*.harbor.*"),
        UploadStyle.CHUNKED,
        RegistryLimits(layer_bytes=32 * GIB),
    ),
)


def profile_for(host: str) -> RegistryProfile:
    """The profile of a registry's `host[:port]`; UNLISTED if none matches."""
    name = host.partition(":")[0].lower()
    for profile in PROFILES:
        if any(fnmatchcase(name, pattern) for pattern in profile.hosts):
            return profile
    return UNLISTED
