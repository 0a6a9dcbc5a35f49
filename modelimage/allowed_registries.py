"""The registries that tenants may name. A program that connected to any host would open its own network to them."""

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
    """A tenant named a registry that isn't in the operator's list."""


@dataclass(frozen=True, slots=True)
class AllowedRegistries:
    """Hosts as in image references, `host` or `host:port`; `*` matches within one label (`*.example`)."""

    patterns: tuple[str, ...] = PUBLIC_REGISTRIES

    @classmethod
    def from_config(cls, patterns: Iterable[str]) -> AllowedRegistries:
        """The operator's list; an empty one means the well-known public registries."""
        # Empty must not mean "any": a program without a list would connect anywhere.
        listed = tuple(patterns)
        return cls(listed) if listed else cls()

    def __contains__(self, registry: str) -> bool:
        return any(_matches(pattern, registry) for pattern in self.patterns)

    def hosts(self) -> tuple[str, ...]:
        """The hosts without wildcards, for a container runtime's configuration."""
        return tuple(pattern for pattern in self.patterns if "*" not in pattern)

    def require(self, registry: str) -> None:
        """Raises RegistryNotAllowed unless a pattern matches."""
        if registry not in self:
            raise RegistryNotAllowed(
                f"images from {registry} aren't allowed here",
                hint="Ask the operator to add it: agent.registries and controller.registries in the chart's values, or "
                "--registry HOST without the chart.",
            )


def _matches(pattern: str, registry: str) -> bool:
    # Label by label: with one match over the whole name, `*.example` would also allow `a.b.example`.
    wanted, labels = pattern.lower().split("."), registry.lower().split(".")
    return len(wanted) == len(labels) and all(
        fnmatchcase(label, each) for label, each in zip(labels, wanted, strict=True)
    )
