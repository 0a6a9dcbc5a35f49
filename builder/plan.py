"""Which files go into which layer. Pure: paths, roles and sizes in, layers out.

One layer per weight file, so that a layer holds exactly what has one identity everywhere; the small files in two
bundles, one that all variants share (tokenizer, code, docs) and one of each variant's own (config). Runtimes stack
layers as overlay mounts and old ones stop at 127, so past 100 layers neighbouring weight files share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from modelimage.digest import Digest
from modelimage.recipe import LayerFile, Recipe, layer_recipe
from modelimage.record import Role

MAX_LAYERS: Final = 100
# The record, the link, the two bundles, and room for a base image's.
_OTHER_LAYERS: Final = 10
MAX_WEIGHT_LAYERS: Final = MAX_LAYERS - _OTHER_LAYERS

# What a recipe's files have for a digest before they were read: no byte of a blob depends on it.
_UNREAD: Final = Digest.of(b"")

SHARED_ROLES: Final = (Role.TOKENIZER, Role.CODE, Role.DOC)


@dataclass(frozen=True, slots=True, order=True)
class PlannedFile:
    """A file that will be packed: its path in the image, size in bytes and role."""

    path: str
    size: int
    role: Role


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """A layer before anything was read: its files, sorted by path, and what it is for."""

    role: Role
    files: tuple[PlannedFile, ...]

    @property
    def recipe(self) -> Recipe:
        """How the blob is made, but for the files' digests, which aren't known yet."""
        return layer_recipe(LayerFile(file.path, file.size, _UNREAD) for file in self.files)

    @property
    def content_size(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return self.recipe.size


def plan_layers(files: Iterable[PlannedFile]) -> tuple[PlannedLayer, ...]:
    """The layers of one variant: shared bundle, config bundle, then weights by path.

    Law: every file is in exactly one layer, whatever the order in which they come.
    """
    ordered = sorted(files)
    shared = [file for file in ordered if file.role in SHARED_ROLES]
    config = [file for file in ordered if file.role is Role.CONFIG]
    weights = [file for file in ordered if file.role is Role.WEIGHT]
    layers = [PlannedLayer(_bundle_role(shared), tuple(shared))] if shared else []
    if config:
        layers.append(PlannedLayer(Role.CONFIG, tuple(config)))
    layers += [PlannedLayer(Role.WEIGHT, group) for group in _groups(weights, MAX_WEIGHT_LAYERS)]
    return tuple(layers)


def _bundle_role(files: Sequence[PlannedFile]) -> Role:
    held = {file.role for file in files}
    return next(role for role in SHARED_ROLES if role in held)


def _groups(files: Sequence[PlannedFile], limit: int) -> list[tuple[PlannedFile, ...]]:
    """Neighbours together, at most `limit` groups, as even in count as can be."""
    count = min(len(files), limit)
    bounds = [len(files) * index // count for index in range(count + 1)] if count else []
    return [tuple(files[start:stop]) for start, stop in pairwise(bounds)]
