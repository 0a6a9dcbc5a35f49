"""How good a variant is, published beside it: a referrer artifact of the variant's ModelPack manifest.

Measured numbers vary with processor and library versions, so they must not be in the image; an artifact whose
`subject` is the image (image-spec v1.1, manifest.md, "Guidelines for Artifact Usage") can be attached, replaced and
found without changing it. What is in the document is `quantize.quality`'s business. Pure.
"""

from __future__ import annotations

from typing import Final

from modelimage import mediatypes
from modelimage.descriptor import UNKNOWN_PLATFORM, Descriptor
from modelimage.publication import Publication
from modelimage.record import Record
from modelimage.referrers import Artifact, ArtifactFile, make_artifact
from quantize.quality import MEDIA_TYPE

_NAME: Final = "quality.json"


def quality_artifact(subject: Descriptor, document: bytes, *, variant: str) -> Artifact:
    """The artifact that says of `subject` what `document` holds. Equal arguments give equal bytes."""
    return make_artifact(
        subject,
        MEDIA_TYPE,
        [ArtifactFile(_NAME, MEDIA_TYPE, document)],
        {mediatypes.ANNOTATION_VARIANT: variant},
    )


def modelpack_manifest(published: Publication, record: Record) -> Descriptor:
    """The manifest of a variant that every index and tag of it leads to."""
    return next(
        manifest.descriptor
        for manifest in published.manifests
        if manifest.descriptor.platform == UNKNOWN_PLATFORM
        and manifest.descriptor.annotations.get(mediatypes.ANNOTATION_MODEL_KEY) == str(record.key)
    )
