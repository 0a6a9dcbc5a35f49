"""Which registries tenants may name. An agent that would connect anywhere is a way into the node's network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from modelimage.errors import AccessDenied

PUBLIC_REGISTRIES = (
    "docker.io",
    "gcr.io",
    "ghcr.io",
    "mcr.microsoft.com",
    "nvcr.io",
    "public.ecr.aws",
    "quay.io",
    "registry.k8s.io",
)


class RegistryNotAllowed(AccessDenied):
    """A tenant named a registry that this node's operator didn't list."""


@dataclass(frozen=True, slots=True)
class AllowedRegistries:
    """Hosts as references write them, `host` or `host:port`; `*` stands for a part of one label (`*.example`)."""

    patterns: tuple[str, ...] = PUBLIC_REGISTRIES

    @classmethod
    def of(cls, patterns: Iterable[str]) -> AllowedRegistries:
        """The operator's list; an empty one means the well-known public registries."""
        listed = tuple(patterns)
        return cls(listed) if listed else cls()

    def __contains__(self, registry: str) -> bool:
        return any(_matches(pattern, registry) for pattern in self.patterns)

    def hosts(self) -> tuple[str, ...]:
        """Those that are named in full, for a runtime's configuration."""
        return tuple(pattern for pattern in self.patterns if "*" not in pattern)

    def require(self, registry: str) -> None:
        """Raises RegistryNotAllowed."""
        if registry not in self:
            raise RegistryNotAllowed(
                f"this node doesn't fetch from {registry}",
                hint="Ask the operator to add it: `weightyard agent --registry HOST`.",
            )


def _matches(pattern: str, registry: str) -> bool:
    wanted, labels = pattern.lower().split("."), registry.lower().split(".")
    return len(wanted) == len(labels) and all(
        fnmatchcase(label, each) for label, each in zip(labels, wanted, strict=True)
    )
