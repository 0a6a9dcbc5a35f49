"""What a model URI of MLflow names: the source of a build, and the image's repository and tag. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# A part of a repository's name (distribution-spec, "Pulling manifests").
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_LONGEST: Final = 100


@dataclass(frozen=True, slots=True)
class DeployedModel:
    """A model in MLflow: the URI as given, the source that never moves, and what is known of it; else empty.

    `name` and `version` are a registered version's.
    """

    uri: str
    source: str
    name: str = ""
    version: str = ""
    run: str = ""

    @property
    def repository(self) -> str:
        """The last part of the image's repository."""
        return repository_of(self.name or self.source.rpartition("/")[2])

    def tag(self, variants: Sequence[str]) -> str:
        """The image's tag. Images with other variants have other tags, so that none loses its own."""
        base = f"v{self.version}" if self.version else _short(self.source)
        return ".".join([base, *variants])


def repository_of(name: str) -> str:
    """A registered model's name as a part of a repository: as it is, or else simplified with a mark of its own."""
    if len(name) <= _LONGEST and _COMPONENT.fullmatch(name):
        return name
    # Two names that are simplified alike don't share a repository.
    simple = "-".join(re.findall(r"[a-z0-9]+", name.lower()))[:_LONGEST].strip("-")
    return "-".join(part for part in (simple, _short(name)) if part)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
