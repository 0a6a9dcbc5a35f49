"""Base images: the layers that image manifests have below the model's, for runtimes that must run a shell from them.

KServe's sidecar modelcars start the image as a container. A base is read per platform: its layers, what they inflate
to, and how its containers run. ModelPack manifests never name it, and no model key depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor, Platform
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotFound, WeightyardError
from modelimage.repository import ImageReader
from modelimage.resolve import list_models, read_blob

_MAX_CONFIG_BYTES: Final = 4 << 20
_CONFIG_TYPES: Final = frozenset({mediatypes.OCI_CONFIG, mediatypes.DOCKER_CONFIG})
# The same bytes under their OCI names: an OCI manifest with docker's names is refused by some runtimes.
_LAYER_TYPES: Final[Mapping[str, str]] = {
    mediatypes.OCI_LAYER_TAR: mediatypes.OCI_LAYER_TAR,
    mediatypes.OCI_LAYER_GZIP: mediatypes.OCI_LAYER_GZIP,
    mediatypes.OCI_LAYER_ZSTD: mediatypes.OCI_LAYER_ZSTD,
    mediatypes.DOCKER_LAYER_GZIP: mediatypes.OCI_LAYER_GZIP,
    mediatypes.DOCKER_LAYER_TAR: mediatypes.OCI_LAYER_TAR,
}


@dataclass(frozen=True, slots=True)
class BaseImage:
    """One platform's base: its manifest's digest, its layers in order, their diff_ids, and its config's `config`."""

    manifest: Digest
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    run: Mapping[str, Any] = field(default_factory=dict)


def read_bases(
    reader: ImageReader, root: Descriptor, platforms: Sequence[Platform]
) -> dict[Platform, BaseImage]:
    """The base of each platform that the image at `root` has; at least one.

    Raises NotFound when it has none of them, InvalidImage when it is no container image.
    """
    found: dict[Platform, BaseImage] = {}
    manifests = list_models(reader, root)
    for manifest in manifests:
        if manifests == [root] or manifest.platform is None or manifest.platform in platforms:
            platform, base = _read(reader, manifest)
            if platform in platforms:
                found.setdefault(platform, base)
    if not found:
        wanted = " or ".join(f"{each.os}/{each.architecture}" for each in platforms)
        raise NotFound(
            f"the base image {root.digest} has nothing for {wanted}",
            hint="Choose a base for the platforms that the nodes have.",
        )
    return {platform: found[platform] for platform in platforms if platform in found}


def _read(reader: ImageReader, manifest: Descriptor) -> tuple[Platform, BaseImage]:
    what = f"base image {manifest.digest}"
    document = canonical.parse(reader.manifest(manifest), what=what)
    described = Descriptor.from_json(document.get("config"))
    if described.media_type not in _CONFIG_TYPES:
        raise _unusable(f"{what} is no container image but {described.media_type}")
    config = canonical.parse(read_blob(reader, described, limit=_MAX_CONFIG_BYTES), what=what)
    layers = tuple(_layer(each, what) for each in _list(document.get("layers"), what))
    rootfs = config.get("rootfs")
    diff_ids = _list(rootfs.get("diff_ids") if isinstance(rootfs, dict) else None, what)
    if len(diff_ids) != len(layers):
        raise _unusable(f"{what} has {len(layers)} layers and {len(diff_ids)} diff_ids")
    run = config.get("config")
    return (
        Platform(str(config.get("os", "")), str(config.get("architecture", ""))),
        BaseImage(
            manifest.digest,
            layers,
            tuple(str(Digest.parse(str(each))) for each in diff_ids),
            run if isinstance(run, dict) else {},
        ),
    )


def _layer(value: object, what: str) -> Descriptor:
    layer = Descriptor.from_json(value)
    if layer.media_type not in _LAYER_TYPES:
        raise _unusable(f"{what} has a layer that can't be passed on: {layer.media_type}")
    return replace(layer, media_type=_LAYER_TYPES[layer.media_type], annotations={}, platform=None)


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise _unusable(f"{what} is malformed: a list is missing")
    return value


def _unusable(message: str) -> WeightyardError:
    return InvalidImage(message, hint="Give --base a container image, for example a busybox.")
