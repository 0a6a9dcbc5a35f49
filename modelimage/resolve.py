"""Resolves an image name to a model: index, manifest, record. Used by inspect, verify, pull and plan.

An image can be referenced by its index or by one of its manifests. Both platforms' manifests and the ModelPack
manifest describe the same files, so all lead to the same record and model key.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from modelimage import canonical, mediatypes, tar
from modelimage.choose import suitable
from modelimage.descriptor import LINUX_AMD64, Descriptor, Platform, descriptors
from modelimage.digest import Digest
from modelimage.errors import (
    DigestMismatch,
    InvalidImage,
    NotFound,
    UnknownVariant,
    Unreachable,
    WeightyardError,
)
from modelimage.path_rules import RECORD_NAME
from modelimage.recipe import models_link_layer, single_file_layer
from modelimage.record import MAX_RECORD_BYTES, Record, Role
from modelimage.repository import ImageReader

# The link's layer has the same bytes in every image, so its digest marks its place when annotations are gone.
_LINK_LAYER = Digest.of(models_link_layer())
# Seconds, and bytes in a second, that reading a small blob may take.
_PATIENCE = 60.0
# Of an index. Each variant has one for each platform and one in ModelPack's format.
_MOST_MANIFESTS = 256
_MOST_NESTED = 4
# Manifests of an index without annotations whose records are read; each variant has one or two.
_MOST_UNSTATED = 32
# Parsing takes many times a record's size in memory. Threads that resolve images take turns, so that they don't take it
# all together; it is the interpreter's one core that they would share anyway.
_one_record = threading.Lock()
_SLOWEST = 64 << 10


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """One resolved variant of an image: its root, manifest, record and layers, and all variants of the image."""

    root: Descriptor
    manifest: Descriptor
    record: Record
    layers: tuple[Descriptor, ...]
    variants: tuple[str, ...]

    @property
    def key(self) -> Digest:
        """The model key."""
        return self.record.key


def resolve_model(reader: ImageReader, name: str, variant: str | None = None) -> ResolvedModel:
    """Resolve a tag or digest, and a variant (None: the image's default), to a model of ours.

    Raises NotFound, UnknownVariant, InvalidImage, DigestMismatch, and any error of the reader.
    """
    model = resolve_ours(reader, reader.resolve(name), variant)
    if model is None:
        raise NotFound(
            "the image has no weightyard record that describes its layers",
            hint="Pull it: another tool's image is cached too, and `weightyard inspect` shows what it is.",
        )
    return model


def resolve_ours(
    reader: ImageReader,
    root: Descriptor,
    variant: str | None = None,
    *,
    platform: Platform = LINUX_AMD64,
) -> ResolvedModel | None:
    """The model of an image whose layers are as weightyard published them, whatever became of its annotations.

    None for any other image, also one that another tool made from ours: that is a foreign image. Raises UnknownVariant,
    NotFound, InvalidImage, DigestMismatch, and any error of the reader.
    """
    listed = list_models(reader, root)
    stated = [each for each in listed if mediatypes.ANNOTATION_MODEL_KEY in each.annotations]
    ours = stated or _recognized(reader, root, suitable(listed, platform))
    if not ours:
        return None
    key = pick_variant(ours, variant).annotations[mediatypes.ANNOTATION_MODEL_KEY]
    # A tool may have changed some of an index's manifests and left others alone, such as the ModelPack one.
    same = [each for each in ours if each.annotations[mediatypes.ANNOTATION_MODEL_KEY] == key]
    for _, model in _models(reader, root, same, ours):
        if not describes_layers(model):
            continue
        # A manifest that was named directly may be of another variant.
        if variant is not None and model.record.variant != variant:
            raise unknown_variant(variant, [model.record.variant])
        return model
    return None


def _models(
    reader: ImageReader,
    root: Descriptor,
    manifests: Sequence[Descriptor],
    listed: Sequence[Descriptor],
    *,
    passed_over: tuple[type[WeightyardError], ...] = (),
) -> Iterator[tuple[Descriptor, ResolvedModel]]:
    """The manifests that hold models of ours, with these. Raises NotFound where none of the manifests is there.

    A tool that copies a part of an index copies one of them; without any, the registry's answers are at fault, and the
    image must not be taken for another's. `passed_over`: errors that only the first manifest raises.
    """
    missing, present = [], False
    for place, manifest in enumerate(manifests):
        try:
            model = read_model(reader, root, manifest, listed)
        except NotFound as error:
            missing.append(error)
            continue
        except passed_over:
            # What stands beside the platform's manifest mustn't hide it.
            if place == 0:
                raise
            continue
        present = True
        if model is not None:
            yield manifest, model
    if missing and not present:
        raise missing[0]


def _recognized(
    reader: ImageReader, root: Descriptor, candidates: Sequence[Descriptor]
) -> list[Descriptor]:
    """Those of an index without annotations that hold models of ours, with the annotations that they had.

    Raises NotFound where none of them is there.
    """
    unstated = candidates[:_MOST_UNSTATED]
    return [
        replace(
            manifest,
            annotations={
                mediatypes.ANNOTATION_VARIANT: model.record.variant,
                mediatypes.ANNOTATION_MODEL_KEY: str(model.key),
            },
        )
        for manifest, model in _models(
            reader, root, unstated, (), passed_over=(InvalidImage, DigestMismatch)
        )
        if describes_layers(model)
    ]


def read_model(
    reader: ImageReader, root: Descriptor, manifest: Descriptor, candidates: Sequence[Descriptor]
) -> ResolvedModel | None:
    """The model of one manifest, by its record; None without one. `candidates`: all of the root's models.

    Raises InvalidImage, DigestMismatch, and any error of the reader.
    """
    what = f"manifest {manifest.digest}"
    document = canonical.parse(reader.manifest(manifest), what=what)
    layers = tuple(descriptors(document, "layers", what=what))
    record = _record(reader, layers)
    if record is None:
        return None
    promised = manifest.annotations.get(mediatypes.ANNOTATION_MODEL_KEY)
    # Planners compare model keys by this annotation without reading the record, so it must be true.
    if promised and promised != str(record.key):
        raise DigestMismatch(f"{what} names another record than it contains")
    return ResolvedModel(root, manifest, record, layers, tuple(_variants(candidates)))


def describes_layers(model: ResolvedModel) -> bool:
    """Whether the record describes every layer from its own on: no other tool compressed, merged or added any. Pure."""
    place = record_place(model.layers)
    above = {layer.digest for layer in model.layers[(place or 0) + 1 :]} - {_LINK_LAYER}
    return above == {layer.digest for layer in model.record.layers}


def record_place(
    layers: Sequence[Descriptor], diff_ids: Sequence[Digest | None] = ()
) -> int | None:
    """The position of the record's layer: by its role, else by content, since many tools drop annotations. Pure.

    In an image it stands before the link's layer, which a compressed image names by its diff_id; in a ModelPack
    artifact it is the first.
    """
    for place, layer in enumerate(layers):
        if layer.annotations.get(mediatypes.ANNOTATION_ROLE) == Role.RECORD.value:
            return place
    for digests in ([layer.digest for layer in layers], diff_ids):
        if _LINK_LAYER in digests[1:]:
            return list(digests).index(_LINK_LAYER, 1) - 1
    first_is_config = layers and layers[0].media_type == mediatypes.MODELPACK_CONFIG_TAR
    return 0 if first_is_config else None


def list_models(reader: ImageReader, root: Descriptor) -> list[Descriptor]:
    """The model manifests of a root: itself, or an index's entries with their variant annotations.

    Entries that are indexes themselves are replaced by theirs. Raises InvalidImage above a number and depth of them.
    """
    if root.media_type not in mediatypes.INDEX_TYPES:
        return [root]
    found = [root]
    for _ in range(_MOST_NESTED):
        above, found = found, []
        for each in above:
            found += _entries(reader, each)
            # Within the loop: the indexes are untrusted, and each may list as many.
            if len(found) > _MOST_MANIFESTS:
                raise InvalidImage(
                    f"index {root.digest} lists more than {_MOST_MANIFESTS} manifests"
                )
        if not found:
            raise InvalidImage(f"index {root.digest} lists no manifest")
        if all(each.media_type not in mediatypes.INDEX_TYPES for each in found):
            return found
    raise InvalidImage(f"the indexes of {root.digest} nest deeper than {_MOST_NESTED}")


def _entries(reader: ImageReader, listed: Descriptor) -> list[Descriptor]:
    if listed.media_type not in mediatypes.INDEX_TYPES:
        return [listed]
    what = f"index {listed.digest}"
    return descriptors(canonical.parse(reader.manifest(listed), what=what), "manifests", what=what)


def pick_variant(candidates: Sequence[Descriptor], variant: str | None) -> Descriptor:
    """The manifest of a variant; None selects the first entry, the default. Raises UnknownVariant."""
    for candidate in candidates:
        if variant is None or candidate.annotations.get(mediatypes.ANNOTATION_VARIANT) == variant:
            return candidate
    # A bare manifest carries no annotation of its own; its record is checked against the variant afterwards.
    if len(candidates) == 1 and mediatypes.ANNOTATION_VARIANT not in candidates[0].annotations:
        return candidates[0]
    raise unknown_variant(str(variant), _variants(candidates))


def unknown_variant(variant: str, held: Sequence[str]) -> UnknownVariant:
    """The error for a variant that an image doesn't hold."""
    return UnknownVariant(
        f"the image has no variant {variant!r}; it has: {', '.join(held) or 'none with a name'}",
        hint="Choose one of these, or build the image with --variant.",
    )


def _variants(candidates: Sequence[Descriptor]) -> list[str]:
    named = (candidate.annotations.get(mediatypes.ANNOTATION_VARIANT) for candidate in candidates)
    return list(dict.fromkeys(variant for variant in named if variant))


def _record(reader: ImageReader, layers: Sequence[Descriptor]) -> Record | None:
    place = record_place(layers)
    if place is None or layers[place].size > MAX_RECORD_BYTES:
        return None
    layer = read_blob(reader, layers[place], limit=MAX_RECORD_BYTES)
    with _one_record:
        data = record_bytes(layer)
        return None if data is None else Record.parse(data)


def parse_record(data: bytes) -> Record:
    """Parse a record, one at a time in this process. Raises InvalidImage."""
    with _one_record:
        return Record.parse(data)


def record_bytes(layer: bytes) -> bytes | None:
    """The record in its layer, which contains nothing else; None for any other layer."""
    header = tar.BLOCK
    # Offset and width are ustar's (POSIX.1-1988); nothing else of the header is read.
    size_field = layer[124:135]
    try:
        size = int(size_field, 8)
    except ValueError:
        return None
    data = layer[header : header + size]
    # Rebuilding the layer proves that the tar holds this file only, without interpreting an untrusted tar.
    return data if layer == single_file_layer(RECORD_NAME, data) else None


def read_blob(
    reader: ImageReader,
    descriptor: Descriptor,
    *,
    limit: int,
    clock: Callable[[], float] = time.monotonic,
) -> bytes:
    """A small blob's verified bytes. Raises InvalidImage above `limit` bytes, DigestMismatch, Unreachable if slow."""
    if descriptor.size > limit:
        raise InvalidImage(f"blob {descriptor.digest} has {descriptor.size} bytes, above {limit}")
    out, buffer = io.BytesIO(), memoryview(bytearray(1 << 20))
    # Each byte is progress, so a stream alone could last for ever; here somebody waits for all of it.
    end = clock() + _PATIENCE + descriptor.size / _SLOWEST
    with reader.blob(descriptor) as stream:
        # Stops at the first buffer beyond the stated size: a remote that sends without end must not fill the memory.
        while out.tell() <= descriptor.size and (count := stream.readinto(buffer)):
            out.write(buffer[:count])
            if clock() > end:
                raise Unreachable(f"blob {descriptor.digest} arrives too slowly")
    data = out.getvalue()
    if len(data) != descriptor.size or Digest.of(data) != descriptor.digest:
        raise DigestMismatch(
            f"blob {descriptor.digest} arrived with other bytes",
            hint="Try again; if the error persists, the registry's copy is damaged: push the image again.",
        )
    return data
