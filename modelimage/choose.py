"""Chooses a manifest of an index: by platform, through nested indexes, without attestations.

The choice is pure; `resolve_manifest` reads the indexes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from modelimage import canonical, mediatypes
from modelimage.descriptor import UNKNOWN_PLATFORM, Descriptor, Platform, descriptors
from modelimage.errors import InvalidImage, NotFound
from modelimage.repository import ImageReader

# Nested indexes are rare; a long chain is an error or an attack.
_MAX_NESTED: Final = 4
_UNBOUND: Final = (None, UNKNOWN_PLATFORM, Platform("", ""))
_REFERENCE_TYPE: Final = "vnd.docker.reference.type"


def resolve_manifest(reader: ImageReader, root: Descriptor, platform: Platform) -> Descriptor:
    """The manifest below a root for a platform. Raises NotFound, InvalidImage, and any error of the reader."""
    found = root
    # One round more than there are indexes: the last one finds a manifest.
    for _ in range(_MAX_NESTED + 1):
        if found.media_type not in mediatypes.INDEX_TYPES:
            return found
        what = f"index {found.digest}"
        index = canonical.parse(reader.manifest(found), what=what)
        found = choose(descriptors(index, "manifests", what=what), platform)
    raise InvalidImage(f"the indexes of {root.digest} nest deeper than {_MAX_NESTED}")


def choose(candidates: Sequence[Descriptor], platform: Platform) -> Descriptor:
    """The first manifest for the platform, else the first without a platform, else the only one.

    Model files don't depend on the processor, so a single image of another platform is accepted. Raises NotFound.
    """
    models = _images(candidates)
    if found := suitable(candidates, platform):
        return found[0]
    held = ", ".join(f"{p.os}/{p.architecture}" for each in models if (p := each.platform))
    raise NotFound(
        f"the index has no image for {platform.os}/{platform.architecture}",
        hint=f"It has: {held or 'none'}. Name one by its digest.",
    )


def suitable(candidates: Sequence[Descriptor], platform: Platform) -> list[Descriptor]:
    """All manifests that may be read for the platform, in `choose`'s order. Pure."""
    models = _images(candidates)
    exact = [each for each in models if each.platform == platform]
    unbound = [each for each in models if each.platform in _UNBOUND]
    return exact + unbound or (models if len(models) == 1 else [])


def _images(candidates: Sequence[Descriptor]) -> list[Descriptor]:
    # BuildKit lists its attestations beside the images, as manifests of an unknown platform.
    return [each for each in candidates if _REFERENCE_TYPE not in each.annotations]
