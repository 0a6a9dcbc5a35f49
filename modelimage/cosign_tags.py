"""Joins what two manifests under one of cosign's tags hold, so that a copy takes nobody's signature away.

cosign, podman and skopeo keep all signatures of an image as layers of one manifest, which a tag names; whoever adds
one replaces it. Must not know what the layers hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.publication import Document
from modelimage.referrers import UNSOUND, blob_content
from modelimage.repository import ImageReader, ImageWriter

# Far more than any image has signatures; with as many, a manifest stays far below the 4 MiB that registries take.
_MOST_LAYERS: Final = 1000


def joined(source: bytes, destination: bytes) -> tuple[Document, Document] | None:
    """The source's manifest with the destination's other layers, and its config; None if there are none. Pure.

    Joining the source with the result again gives the same manifest. Raises InvalidImage if one is malformed.
    """
    document = canonical.parse(source, what="a manifest of signatures")
    ours = _layers(document)
    theirs = _layers(canonical.parse(destination, what="a manifest of signatures"))
    added = [each for each in theirs if each not in ours]
    # Without layers it is an index, or none of cosign's.
    if not ours or not added or len(ours) + len(added) > _MOST_LAYERS:
        return None
    layers = [*ours, *added]
    # cosign writes the config of an image whose layers the signatures are.
    rootfs = {"type": "layers", "diff_ids": [str(each.digest) for each in layers]}
    config = canonical.to_bytes({"architecture": "", "config": {}, "os": "", "rootfs": rootfs})
    held = Document.from_bytes(mediatypes.OCI_CONFIG, config)
    members = {"config": held.descriptor.to_json(), "layers": [each.to_json() for each in layers]}
    return Document.from_bytes(
        mediatypes.OCI_MANIFEST, canonical.to_bytes(document | members)
    ), held


def put_joined(source: bytes, tag: str, reader: ImageReader, writer: ImageWriter) -> bool:
    """Point a destination's tag at what it names and the source's manifest, joined; False if nothing is to be joined.

    `reader` and `writer` are the destination's. What can't be read there is nobody's signature, so it is replaced.
    """
    # A list of layers can be joined; under .sbom is one document, which newer bytes replace.
    if tag.endswith(".sbom"):
        return False
    with suppress(*UNSOUND):
        both = joined(source, reader.manifest(reader.resolve(tag)))
        if both is None:
            return False
        manifest, config = both
        writer.put_blob(blob_content(config))
        writer.put_manifest(manifest.descriptor, manifest.data, tag)
        return True
    return False


def _layers(document: dict[str, Any]) -> Sequence[Descriptor]:
    listed = document.get("layers")
    return [Descriptor.from_json(each) for each in listed] if isinstance(listed, list) else []
