"""The description of a foreign image: the same values for all formats. Pure.

The manifest gives its layers; its files are known once every layer was listed: a raw layer is one file, an uncompressed
tar is listed by its headers alone, a compressed one only by reading all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput
from modelimage.foreign.limits import Limits
from modelimage.foreign.overlay import Tree
from modelimage.foreign.tarwalk import MemberKind, TarMember
from modelimage.path_rules import MODELS_LINK, RECORD_NAME
from modelimage.recipe import FileSlice, LayerFile, Literal, Recipe, Segment
from modelimage.record import Record, Role

# The names that eStargz reserves in each layer (containerd/stargz-snapshotter, docs/estargz.md): its table of contents
# and its marks. No part of what was packed.
ESTARGZ_NAMES: Final = frozenset(
    {"stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"}
)
# Roles by file name. The first match wins.
_ROLES: Final = (
    (Role.WEIGHT, (
        "*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.onnx", "*.onnx_data", "*.ckpt", "*.h5", "*.msgpack",
        "*.dduf", "*.mmproj", "*.npz", "*.pkl", "*.tflite",
    )),
    (Role.TOKENIZER, (
        "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.tiktoken",
        "chat_template*", "*.jinja",
    )),
    (Role.CODE, ("*.py", "*.sh", "*.ipynb")),
    (Role.CONFIG, ("*.json", "*.yaml", "*.yml", "*.toml")),
)  # fmt: skip


class ImageFormat(Enum):
    """The format of an image, determined by its media types."""

    MODELPACK = "modelpack"
    KITOPS = "kitops"
    DOCKER_MODEL = "docker-model"
    OLLAMA = "ollama"
    ARTIFACT = "artifact"  # files pushed one by one, as oras does
    IMAGE = "image"  # a container image: a modelcar, or any other


class Packing(Enum):
    """How a layer blob contains its files."""

    RAW = "raw"
    TAR = "tar"
    TAR_GZIP = "tar+gzip"
    TAR_ZSTD = "tar+zstd"

    @property
    def is_compressed(self) -> bool:
        return self in (Packing.TAR_GZIP, Packing.TAR_ZSTD)


@dataclass(frozen=True, slots=True)
class ForeignLayer:
    """One layer blob.

    `path`: a raw layer's file, or the directory for a tar's members. `role`: the role of its files, None to derive it
    from each name. `diff_id`: the digest of the uncompressed tar, if the image states it. `members`: the layer's
    members, None while unknown. `literals`: the bytes of the blob before, between and after its non-empty files, None
    if the blob can't be rebuilt from its files.
    """

    descriptor: Descriptor
    packing: Packing
    path: str = ""
    role: Role | None = None
    diff_id: Digest | None = None
    members: tuple[TarMember, ...] | None = None
    literals: tuple[bytes, ...] | None = None

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    def recipe(self, file: Callable[[int], LayerFile]) -> Recipe | None:
        """The recipe of the blob; `file` returns the file of a member number. None if it can't be rebuilt."""
        # Without all bytes around the files, a rebuilt blob would have another digest.
        if self.literals is None or self.members is None:
            return None
        segments: list[Segment] = [Literal(self.literals[0])]
        holders = [n for n, member in enumerate(self.members) if member.size]
        for number, literal in zip(holders, self.literals[1:], strict=True):
            segments += [FileSlice(file(number), 0, self.members[number].size), Literal(literal)]
        return Recipe.from_segments(segments)


@dataclass(frozen=True, slots=True)
class ForeignFile:
    """A file of the model.

    `member` is its number in the layer. `offset` is the start of its bytes in the layer blob, None if compressed.
    `digest` is known in advance only for a raw layer, whose digest is that of its file.
    """

    path: str
    size: int
    role: Role
    layer: Digest
    member: int
    offset: int | None = None
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A resolved foreign image. `files` is empty until `is_listed`.

    `left_out` maps ignored paths and layers to the reason. `record`: the weightyard record that the image carries,
    which is only a claim about it; `record_file`: the record among its files, once they are listed.
    """

    root: Descriptor
    manifest: Descriptor
    kind: ImageFormat
    layers: tuple[ForeignLayer, ...]
    files: tuple[ForeignFile, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    record: Record | None = None
    record_file: ForeignFile | None = None

    @property
    def key(self) -> Digest:
        """The model key of a foreign image: the digest of its resolved manifest."""
        return self.manifest.digest

    @property
    def is_listed(self) -> bool:
        """Whether its files are known."""
        return all(layer.members is not None for layer in self.layers)

    @property
    def size(self) -> int:
        """Bytes of all files; files that share bytes count separately."""
        return sum(file.size for file in self.files)

    def listed(self, members: Mapping[Digest, Sequence[TarMember]]) -> ForeignModel:
        """A copy with the members found in some layers, by layer digest. Raises InvalidImage.

        Members found by streaming replace those listed from headers, because only the stream's bytes were verified.
        """
        # A raw layer's only member is known from the manifest, with the path of its annotation.
        layers = tuple(
            replace(layer, members=tuple(members[layer.digest]))
            if layer.digest in members and layer.packing is not Packing.RAW
            else layer
            for layer in self.layers
        )
        known = replace(self, layers=layers)
        return known._with_files() if known.is_listed else known

    def layer(self, digest: Digest) -> ForeignLayer:
        """The layer of a digest. Raises InvalidInput."""
        for layer in self.layers:
            if layer.digest == digest:
                return layer
        raise InvalidInput(f"the image has no layer {digest}")

    def _with_files(self) -> ForeignModel:
        is_image = self.kind is ImageFormat.IMAGE
        # Only container images define whiteouts and replacement; in an artifact a path that occurs twice is ambiguous.
        tree = Tree(overlay=is_image, limits=self.limits)
        for number, layer in enumerate(self.layers):
            tree.add(number, _placed(layer))
        # Modelcars have the model below /models beside a base system; other images have it at their root.
        view = tree.view(MODELS_LINK if is_image and tree.holds_files(MODELS_LINK) else "")
        # By its name in the layer: the view may lead through a link.
        packaging = {
            path
            for path, at in view.files
            if is_image and (self.layers[at.layer].members or ())[at.member].path in ESTARGZ_NAMES
        }
        every = [
            _file(path, self.layers[at.layer], at.member)
            for path, at in view.files
            if path not in packaging
        ]
        # The cache writes its own record under this name.
        record_file = next((file for file in every if file.path == RECORD_NAME), None)
        files = tuple(file for file in every if file is not record_file)
        # An empty model would be cached and served as if it were complete.
        if not files:
            raise InvalidImage("the image holds no files")
        left_out = {**self.left_out, **view.left_out}
        left_out |= dict.fromkeys(packaging, "eStargz's own")
        if record_file is not None and self.record is None:
            left_out[RECORD_NAME] = "the name of the cache's own record"
        return replace(self, files=files, left_out=left_out, record_file=record_file)


def _placed(layer: ForeignLayer) -> list[TarMember]:
    """A layer's members with their paths in the model."""
    members = layer.members or ()
    if layer.packing is Packing.RAW or not layer.path:
        return list(members)
    return [
        replace(
            member,
            path=f"{layer.path}/{member.path}".rstrip("/"),
            # A hard link names another member, which moves too; a symbolic link stays relative.
            target=f"{layer.path}/{member.target}"
            if member.kind is MemberKind.HARDLINK
            else member.target,
        )
        for member in members
    ]


def _file(path: str, layer: ForeignLayer, number: int) -> ForeignFile:
    member = (layer.members or ())[number]
    return ForeignFile(
        path=path,
        size=member.size,
        role=layer.role or role_of(path),
        layer=layer.digest,
        member=number,
        offset=None if layer.packing.is_compressed else member.offset,
        digest=layer.digest if layer.packing is Packing.RAW else None,
    )


def role_of(path: str) -> Role:
    """The role of a file by its name, where the image states none; files that match no rule are documentation."""
    name = path.rpartition("/")[2].lower()
    for role, patterns in _ROLES:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return role
    return Role.DOC
