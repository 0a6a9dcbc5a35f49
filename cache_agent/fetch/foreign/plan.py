"""How each layer of a foreign image is fetched, and what that takes. Pure.

A layer whose files lie in it as they are, and whose other bytes are known from its headers, comes in parallel ranges
and is verified afterwards: exactly those bytes and these files must make up its digest. Any other is read once from
its beginning to its end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.fetch.planner import FileQueue, RangeRequest, plan_queues
from cache_agent.sources.source import ChunkRange, Layered
from cache_agent.store.staged_files import unknown_file
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.foreign import ForeignLayer, ForeignModel, LayerContents, MemberKind, Packing
from modelimage.ranges import ByteRange
from modelimage.recipe import FileSlice, LayerFile, Recipe
from modelimage.record import RecordFile, Role

# Each file that comes in ranges keeps a descriptor open until its layer is whole.
_MAX_FILES: Final = 256


@dataclass(frozen=True, slots=True)
class Found:
    """What a verified layer holds. `literals` are its bytes beside its files, where those were verified too."""

    contents: LayerContents
    literals: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer to fetch. `wanted`: the members that the model has, None while that isn't known.

    `ranged`: by member number the files that come in ranges; empty for a layer that is read in one pass.
    """

    layer: ForeignLayer
    wanted: frozenset[int] | None
    ranged: Mapping[int, RecordFile] = field(default_factory=dict)

    @property
    def whole(self) -> RecordFile:
        """The layer itself, as the one thing that a pass over it fetches."""
        digest = self.layer.digest
        return RecordFile(
            f"layer {digest.short}", self.layer.descriptor.size, digest, Role.WEIGHT, digest, ()
        )

    def tracks(self, missing: Mapping[Digest, Collection[int]]) -> list[FileQueue]:
        """What to ask for, when these chunks are missing."""
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
        """Where in the blob lies what is fetched."""
        if self.ranged:
            recipe = self.layer.recipe(lambda number: _layer_file(self.ranged[number]))
            if recipe is not None:
                return recipe
        return Recipe.of([FileSlice(_layer_file(self.whole), 0, self.whole.size)])

    @property
    def need(self) -> int:
        """Bytes that it takes on disk at least."""
        if self.ranged:
            return sum(file.size for file in self.ranged.values())
        members = self.layer.members
        if members is None or self.wanted is None:
            return self.layer.descriptor.size
        return sum(members[number].size for number in self.wanted)


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """The layers of one foreign image that must be fetched, in the words that sources understand."""

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
    """A foreign image and what sources are asked for of it: see `Resolved`."""

    root: Descriptor
    manifest: Descriptor
    record: Layered
    layers: tuple[Descriptor, ...]

    @property
    def key(self) -> Digest:
        return self.manifest.digest


def distinct_layers(model: ForeignModel) -> dict[Digest, ForeignLayer]:
    """The layers by digest; one that a model has under two paths is fetched once."""
    return {layer.digest: layer for layer in model.layers}


def assemble(model: ForeignModel, found: Mapping[Digest, Found]) -> ForeignModel:
    """The model with what is known of its layers. Raises InvalidImage."""
    layers = tuple(
        replace(layer, literals=found[layer.digest].literals)
        if layer.digest in found and layer.packing is not Packing.RAW
        else layer
        for layer in model.layers
    )
    members = {digest: each.contents.members for digest, each in found.items()}
    return replace(model, layers=layers).listed(members)


def plan_layer(model: ForeignModel, layer: ForeignLayer) -> LayerPlan:
    """How to fetch one layer of a model, of which as much is known as can be."""
    wanted = None
    if model.is_listed:
        wanted = frozenset(file.member for file in model.files if file.layer == layer.digest)
    if layer.members is None or layer.literals is None:
        return LayerPlan(layer, wanted)
    held = [number for number, member in enumerate(layer.members) if member.size]
    if not held or len(held) > _MAX_FILES or (wanted is not None and not wanted.issuperset(held)):
        return LayerPlan(layer, wanted)
    files = {n: unknown_file(layer.digest, n, layer.members[n].size) for n in held}
    return LayerPlan(layer, wanted, files)


def lacking(model: ForeignModel, found: Mapping[Digest, Found]) -> set[Digest]:
    """The layers that hold a file of the model whose bytes weren't kept when they were read."""
    return {
        file.layer for file in model.files if file.member not in found[file.layer].contents.files
    }


def empty_files(layer: ForeignLayer) -> list[int]:
    """The members that are files without bytes."""
    return [
        number
        for number, member in enumerate(layer.members or ())
        if member.kind is MemberKind.FILE and not member.size
    ]


def _layer_file(file: RecordFile) -> LayerFile:
    return LayerFile(file.path, file.size, file.digest)
