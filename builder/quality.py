"""How good a variant is, published beside it: a referrer artifact of the variant's ModelPack manifest.

Measured numbers vary with processor and library versions, so they must not be in the image; an artifact whose
`subject` is the image (image-spec v1.1, manifest.md, "Guidelines for Artifact Usage") can be attached, replaced and
found without changing it. What is in the document is `quantize.quality`'s business. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelimage import canonical, mediatypes
from modelimage.descriptor import UNKNOWN_PLATFORM, Descriptor
from modelimage.publication import Document, Publication
from modelimage.record import Record

QUALITY_TYPE: Final = "application/vnd.weightyard.quality.v1+json"
_TITLE: Final = "quality.json"
_EMPTY: Final = b"{}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A referrer, ready to be stored: its blobs, and the manifest that names its subject."""

    blobs: tuple[Document, ...]
    manifest: Document


def quality_artifact(subject: Descriptor, document: bytes, *, variant: str) -> Artifact:
    """The artifact that says of `subject` what `document` holds. Equal arguments give equal bytes."""
    config = Document.of(mediatypes.OCI_EMPTY, _EMPTY)
    layer = Document.of(QUALITY_TYPE, document, annotations={mediatypes.ANNOTATION_TITLE: _TITLE})
    bare = Descriptor(subject.media_type, subject.digest, subject.size)
    annotations = {mediatypes.ANNOTATION_VARIANT: variant}
    manifest = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "artifactType": QUALITY_TYPE,
        "config": config.descriptor.to_json(),
        "layers": [layer.descriptor.to_json()],
        "subject": bare.to_json(),
        "annotations": annotations,
    }
    return Artifact(
        (config, layer),
        Document.of(
            mediatypes.OCI_MANIFEST,
            canonical.to_bytes(manifest),
            artifact_type=QUALITY_TYPE,
            annotations=annotations,
        ),
    )


def modelpack_manifest(published: Publication, record: Record) -> Descriptor:
    """The manifest of a variant that every index and tag of it leads to."""
    return next(
        manifest.descriptor
        for manifest in published.manifests
        if manifest.descriptor.platform == UNKNOWN_PLATFORM
        and manifest.descriptor.annotations.get(mediatypes.ANNOTATION_MODEL_KEY) == str(record.key)
    )
