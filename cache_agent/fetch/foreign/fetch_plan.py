"""Plans how each layer of a foreign image is fetched, and the space it needs. Pure.

An uncompressed layer whose other bytes (tar headers, padding) are known is fetched in parallel ranges and verified
afterwards: those bytes and the files must hash to its digest. Any other layer is read in one pass.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.fetch.range_planner import FileQueue, RangeRequest, plan_queues
from cache_agent.sources.source import ChunkRange, Layered
from cache_agent.store.staged_files import unknown_file
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.foreign import ForeignLayer, ForeignModel, LayerContents, MemberKind, Packing
from modelimage.ranges import ByteRange
from modelimage.recipe import FileSlice, LayerFile, Recipe
from modelimage.record import RecordFile, Role

# Each file fetched in ranges keeps a file descriptor open until its layer is complete.
_MAX_FILES: Final = 256


@dataclass(frozen=True, slots=True)
class Found:
    """The contents of a verified layer. `literals`: its bytes between the files, where those were verified too."""

    contents: LayerContents
    literals: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer to fetch. `wanted`: the members that belong to the model, None while unknown.

    `ranged`: the files fetched in ranges, by member number; empty for a layer that is read in one pass.
    """

    layer: ForeignLayer
    wanted: frozenset[int] | None
    ranged: Mapping[int, RecordFile] = field(default_factory=dict)

    @property
    def whole(self) -> RecordFile:
        """The layer as a single file, for a layer that is read in one pass."""
        # Without chunk digests: nothing but the layer's own digest can verify it.
        digest = self.layer.digest
        return RecordFile(
            f"layer {digest.short}", self.layer.descriptor.size, digest, Role.WEIGHT, digest, ()
        )

    def queues(self, missing: Mapping[Digest, Collection[int]]) -> list[FileQueue]:
        """The queues of range requests for these missing chunks."""
        if self.ranged:
            return plan_queues(list(self.ranged.values()), missing)
        whole = self.whole
        return (
            [(RangeRequest((ChunkRange(whole, 0, ByteRange(0, whole.size)),)),)]
            if whole.size
            else []
        )

    @property
    def recipe(self) -> Recipe:
        """The positions in the blob of the files to fetch."""
        if self.ranged:
            recipe = self.layer.recipe(lambda number: _layer_file(self.ranged[number]))
            if recipe is not None:
                return recipe
        return Recipe.from_segments([FileSlice(_layer_file(self.whole), 0, self.whole.size)])

    @property
    def need(self) -> int:
        """The least number of bytes it needs on disk."""
        if self.ranged:
            return sum(file.size for file in self.ranged.values())
        members = self.layer.members
        if members is None or self.wanted is None:
            return self.layer.descriptor.size
        return sum(members[number].size for number in self.wanted)


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """The layers of one foreign image to fetch, as a `Layered` for sources."""

    layers: tuple[Descriptor, ...]
    plans: Mapping[Digest, LayerPlan]

    @classmethod
    def of(cls, plans: Sequence[LayerPlan]) -> FetchPlan:
        return cls(
            tuple(plan.layer.descriptor for plan in plans),
            {plan.layer.digest: plan for plan in plans},
        )

    def recipe(self, layer: Digest) -> Recipe | None:
        """See `Layered.recipe`."""
        plan = self.plans.get(layer)
        return plan.recipe if plan else None


@dataclass(frozen=True, slots=True)
class ResolvedForeign:
    """A foreign image and the layers to fetch from its sources: see `Resolved`."""

    root: Descriptor
    manifest: Descriptor
    record: Layered
    layers: tuple[Descriptor, ...]

    @property
    def key(self) -> Digest:
        return self.manifest.digest


def distinct_layers(model: ForeignModel) -> dict[Digest, ForeignLayer]:
    """The layers by digest: a layer that a model has under two paths is fetched once."""
    return {layer.digest: layer for layer in model.layers}


def assemble(model: ForeignModel, found: Mapping[Digest, Found]) -> ForeignModel:
    """The model with the known contents of its layers filled in. Raises InvalidImage."""
    layers = tuple(
        replace(layer, literals=found[layer.digest].literals)
        if layer.digest in found and layer.packing is not Packing.RAW
        else layer
        for layer in model.layers
    )
    members = {digest: each.contents.members for digest, each in found.items()}
    return replace(model, layers=layers).listed(members)


def plan_layer(model: ForeignModel, layer: ForeignLayer) -> LayerPlan:
    """Choose between ranges and one pass for one layer of a model whose known layers are filled in."""
    wanted = None
    if model.is_listed:
        # The record that the image carries is staged too: its files are compared with it.
        every = (*model.files, *([model.record_file] if model.record_file else []))
        wanted = frozenset(file.member for file in every if file.layer == layer.digest)
    if layer.members is None or layer.literals is None:
        return LayerPlan(layer, wanted)
    # Ranges need every file of the layer: its digest is computed over all of them, also those the model doesn't use.
    held = [number for number, member in enumerate(layer.members) if member.size]
    if not held or len(held) > _MAX_FILES or (wanted is not None and not wanted.issuperset(held)):
        return LayerPlan(layer, wanted)
    files = {n: unknown_file(layer.digest, n, layer.members[n].size) for n in held}
    return LayerPlan(layer, wanted, files)


def lacking(model: ForeignModel, found: Mapping[Digest, Found]) -> set[Digest]:
    """The layers with a file of the model whose bytes weren't kept when the layer was read."""
    return {
        file.layer for file in model.files if file.member not in found[file.layer].contents.files
    }


def empty_files(layer: ForeignLayer) -> list[int]:
    """The members that are empty files."""
    return [
        number
        for number, member in enumerate(layer.members or ())
        if member.kind is MemberKind.FILE and not member.size
    ]


def _layer_file(file: RecordFile) -> LayerFile:
    return LayerFile(file.path, file.size, file.digest)
