"""Base images: the layers below the model's, for runtimes that run the image as a container with a shell.

KServe starts sidecar modelcars this way. A base is read per platform: its layers, their diff_ids and its container
settings. ModelPack manifests never include a base, and no model key depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor, Platform, descriptors
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotFound, WeightyardError
from modelimage.publication import BaseImage
from modelimage.repository import ImageReader
from modelimage.resolve import list_models, read_blob

# Configs are read into memory, so untrusted ones are bounded.
_MAX_CONFIG_BYTES: Final = 4 << 20
_CONFIG_TYPES: Final = frozenset({mediatypes.OCI_CONFIG, mediatypes.DOCKER_CONFIG})
# Blobs are listed under their OCI names: some runtimes refuse an OCI manifest with docker media types.
_LAYER_TYPES: Final[Mapping[str, str]] = {
    mediatypes.OCI_LAYER_TAR: mediatypes.OCI_LAYER_TAR,
    mediatypes.OCI_LAYER_GZIP: mediatypes.OCI_LAYER_GZIP,
    mediatypes.OCI_LAYER_ZSTD: mediatypes.OCI_LAYER_ZSTD,
    mediatypes.DOCKER_LAYER_GZIP: mediatypes.OCI_LAYER_GZIP,
    mediatypes.DOCKER_LAYER_TAR: mediatypes.OCI_LAYER_TAR,
}


def read_bases(
    reader: ImageReader, root: Descriptor, platforms: Sequence[Platform]
) -> dict[Platform, BaseImage]:
    """Read the base of each requested platform that the image at `root` provides; the result is never empty.

    Raises NotFound when it provides none of them, InvalidImage when it isn't a container image.
    """
    found: dict[Platform, BaseImage] = {}
    manifests = list_models(reader, root)
    for manifest in manifests:
        # A single manifest, or an index entry without a platform, states its platform only in the config.
        if manifests == [root] or manifest.platform is None or manifest.platform in platforms:
            platform, base = _read(reader, manifest)
            if platform in platforms:
                found.setdefault(platform, base)
    if not found:
        wanted = " or ".join(f"{each.os}/{each.architecture}" for each in platforms)
        raise NotFound(
            f"the base image {root.digest} has no image for {wanted}",
            hint="Choose a base image that exists for the nodes' platforms.",
        )
    return {platform: found[platform] for platform in platforms if platform in found}


def _read(reader: ImageReader, manifest: Descriptor) -> tuple[Platform, BaseImage]:
    what = f"base image {manifest.digest}"
    document = canonical.parse(reader.manifest(manifest), what=what)
    described = Descriptor.from_json(document.get("config"))
    # Artifacts have manifests of the same type; only the config's type shows that this is a container image.
    if described.media_type not in _CONFIG_TYPES:
        raise _unusable(f"{what} isn't a container image but {described.media_type}")
    config = canonical.parse(read_blob(reader, described, limit=_MAX_CONFIG_BYTES), what=what)
    layers = tuple(_layer(each, what) for each in descriptors(document, "layers", what=what))
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list):
        raise _unusable(f"{what} has no list of diff_ids")
    # Runtimes refuse an image whose diff_ids don't match its layers: better found here than on a node.
    if len(diff_ids) != len(layers):
        raise _unusable(f"{what} has {len(layers)} layers and {len(diff_ids)} diff_ids")
    run = config.get("config")
    # The diff_ids are parsed, so that a malformed one can't get into a published config.
    return (
        Platform(str(config.get("os", "")), str(config.get("architecture", ""))),
        BaseImage(
            manifest.digest,
            layers,
            tuple(str(Digest.parse(str(each))) for each in diff_ids),
            run if isinstance(run, dict) else {},
        ),
    )


def _layer(layer: Descriptor, what: str) -> Descriptor:
    if layer.media_type not in _LAYER_TYPES:
        raise _unusable(f"{what} has a layer of an unsupported type: {layer.media_type}")
    # Annotations and platform belong to the base's own manifest; copied here they would describe the model image.
    return replace(layer, media_type=_LAYER_TYPES[layer.media_type], annotations={}, platform=None)


def _unusable(message: str) -> WeightyardError:
    return InvalidImage(message, hint="Give --base a container image, for example a busybox.")
