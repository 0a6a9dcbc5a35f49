"""Groups files into layers. Pure: paths, roles and sizes to layers.

One layer per weight file, so that a layer has the identity of its file everywhere; small files in two bundles, one
shared by all variants (tokenizer, code, docs) and one per variant (config). Runtimes stack layers as overlay mounts,
and old ones support at most 127, so beyond 100 layers neighbouring weight files share one.
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
# The record, the link, the two bundles, and some for a base image.
_OTHER_LAYERS: Final = 10
MAX_WEIGHT_LAYERS: Final = MAX_LAYERS - _OTHER_LAYERS

# A placeholder digest for unread files: no byte of a blob depends on it.
_UNREAD: Final = Digest.of(b"")

# Quantization doesn't change these files, so all variants share their layer.
SHARED_ROLES: Final = (Role.TOKENIZER, Role.CODE, Role.DOC)


@dataclass(frozen=True, slots=True, order=True)
class PlannedFile:
    """A file to be packed: its path in the image, size in bytes and role."""

    path: str
    size: int
    role: Role


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """A layer before its files are read: its role, and its files sorted by path."""

    role: Role
    files: tuple[PlannedFile, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the blob, without the files' digests, which aren't known yet."""
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

    Law: every file is in exactly one layer, whatever their order.
    """
    # Sorted: layers, and so their digests, must not depend on the order of a listing.
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
    """Split into at most `limit` groups of neighbours, with counts as even as possible."""
    count = min(len(files), limit)
    bounds = [len(files) * index // count for index in range(count + 1)] if count else []
    return [tuple(files[start:stop]) for start, stop in pairwise(bounds)]
