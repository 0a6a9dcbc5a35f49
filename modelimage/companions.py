"""What is stored beside an image and says something of it: signatures, attestations, SBOMs, reports.

They are found in three places: the referrers API, the fallback tag of registries without it, and cosign's tags
`sha256-<hex>.sig`, `.att` and `.sbom`. They may be about the image's index or about any manifest in it, and may have
companions of their own, such as the signature of an SBOM.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotFound
from modelimage.push import ImageTree, read_tree
from modelimage.referrers import cosign_tags, list_referrers
from modelimage.repository import ImageReader

# Anyone who may push can attach: far more than any image has.
_MOST_TREES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Companions:
    """The companions of some images; `tags`: those that cosign looks up by name."""

    trees: tuple[ImageTree, ...]
    tags: dict[str, Descriptor]


def find_companions(reader: ImageReader, trees: Iterable[ImageTree]) -> Companions:
    """The companions of every manifest of some images, and theirs. Raises InvalidImage, the reader's errors."""
    found: dict[Digest, ImageTree] = {}
    tags: dict[str, Descriptor] = {}
    left = [document.descriptor for tree in trees for document in tree.manifests]
    seen = {each.digest for each in left}
    while left:
        subject = left.pop()
        named = _tagged(reader, subject.digest)
        tags |= named
        for each in (*list_referrers(reader, subject), *named.values()):
            if each.digest in found:
                continue
            if len(found) >= _MOST_TREES:
                raise InvalidImage(f"more than {_MOST_TREES} artifacts are attached to the image")
            # Listed, but deleted since: the image is complete without it.
            with suppress(NotFound):
                tree = found[each.digest] = read_tree(reader, each)
                fresh = [d.descriptor for d in tree.manifests if d.descriptor.digest not in seen]
                seen.update(descriptor.digest for descriptor in fresh)
                left += fresh
    kept = {tag: root for tag, root in tags.items() if root.digest in found}
    return Companions(tuple(found.values()), kept)


def _tagged(reader: ImageReader, subject: Digest) -> dict[str, Descriptor]:
    tags = {}
    for tag in cosign_tags(subject):
        with suppress(NotFound):
            tags[tag] = reader.resolve(tag)
    return tags
