"""Helpers shared by all formats: packing by media type, diff_ids, and file paths from annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from modelimage import mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError
from modelimage.foreign.model import ForeignLayer, Packing
from modelimage.foreign.tarwalk import MemberKind, TarMember
from modelimage.path_rules import check_path
from modelimage.record import Role

# OCI's types end in `tar+gzip`, Docker's in `tar.gzip`; what stands before that is each format's own.
_SUFFIXES: Final = (
    (("tar+gzip", "tar.gzip", "tar+gz", "tar.gz"), Packing.TAR_GZIP),
    (("tar+zstd", "tar.zstd"), Packing.TAR_ZSTD),
    (("tar",), Packing.TAR),
)
# In this order: ModelPack's annotation, the name that it had at first, and the
# title by which ORAS names files.
_FILEPATHS: Final = (
    mediatypes.ANNOTATION_FILEPATH,
    "org.cnai.model.filepath",
    mediatypes.ANNOTATION_TITLE,
)


class Mapped(NamedTuple):
    """The layers of an image that belong to the model, and the reasons why others don't."""

    layers: tuple[ForeignLayer, ...]
    left_out: dict[str, str]


def tar_packing(media_type: str) -> Packing | None:
    """The packing of a tar layer; None if its media type isn't a tar."""
    for suffixes, packing in _SUFFIXES:
        if media_type.endswith(suffixes):
            return packing
    return None


def raw_layer(
    descriptor: Descriptor, path: str, role: Role | None = None, diff_id: Digest | None = None
) -> ForeignLayer:
    """A layer that is a single file. Raises InvalidImage for an unsafe path."""
    check_diff_id(descriptor, diff_id)
    member = TarMember(check_path(path), MemberKind.FILE, descriptor.size)
    # One literal more than non-empty files: before, between and after them.
    literals = (b"", b"") if descriptor.size else (b"",)
    return ForeignLayer(
        descriptor,
        Packing.RAW,
        path=path,
        role=role,
        diff_id=diff_id,
        members=(member,),
        literals=literals,
    )


def tar_layer(
    descriptor: Descriptor,
    packing: Packing,
    *,
    path: str = "",
    role: Role | None = None,
    diff_id: Digest | None = None,
) -> ForeignLayer:
    """A tar layer that isn't listed yet; `packing` by its media type. Raises InvalidImage for an unsafe path."""
    if path:
        check_path(path)
    return ForeignLayer(descriptor, packing, path=path, role=role, diff_id=diff_id)


def numbered(name: str, number: int, total: int) -> str:
    """The name of one of several files of a kind: model.gguf is model-00001-of-00002.gguf, the first of two."""
    if total == 1:
        return name
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{number:05d}-of-{total:05d}{dot}{suffix}"


def unique(layers: Sequence[ForeignLayer]) -> tuple[ForeignLayer, ...]:
    """The layers without exact repetitions, that is the same blob with the same path."""
    # A blob may occur under two paths, which are two files; the same pair twice would look like a conflict.
    return tuple({(layer.digest, layer.path): layer for layer in layers}.values())


def filepath(descriptor: Descriptor) -> str | None:
    """The file path in a layer's annotations, without a leading './'."""
    for name in _FILEPATHS:
        if path := descriptor.annotations.get(name):
            return path.removeprefix("./")
    return None


def diff_ids(holder: object, names: Sequence[str], count: int) -> list[Digest | None]:
    """The diff_ids of `count` layers, from the first existing member of `names` in a JSON object.

    Raises InvalidImage if they are malformed or of a different number.
    """
    listed: object = None
    if isinstance(holder, Mapping):
        listed = next((holder[name] for name in names if holder.get(name)), None)
    # diff_ids are optional: without them, a compressed layer is verified by its own digest alone.
    if listed is None:
        return [None] * count
    if not isinstance(listed, list) or len(listed) != count:
        raise InvalidImage(f"the image's config doesn't list {count} diff_ids for {count} layers")
    return [parse_digest(each) for each in listed]


def parse_digest(value: Any) -> Digest:
    """Parse a digest from an untrusted config. Raises InvalidImage."""
    try:
        return Digest.parse(str(value))
    except WeightyardError as error:
        raise InvalidImage(f"malformed diff_id or digest in the image's config: {error}") from error


def check_diff_id(descriptor: Descriptor, diff_id: Digest | None) -> None:
    """Raise InvalidImage unless an uncompressed layer's diff_id, if stated, is its digest."""
    if diff_id is not None and diff_id != descriptor.digest:
        raise InvalidImage(
            f"the image's config states {diff_id} for the uncompressed layer {descriptor.digest}"
        )
