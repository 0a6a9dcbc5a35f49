"""The quality report of a variant, published as a referrer artifact of the variant's ModelPack manifest.

Measurements vary with processor and library versions, so they must not be in the image. An artifact whose `subject` is
the image (image-spec v1.1, manifest.md, "Guidelines for Artifact Usage") can be attached, replaced and found without
changing it. The document's format is defined in `quantize.quality`.
"""

from __future__ import annotations

from typing import Final

from modelimage import mediatypes
from modelimage.descriptor import UNKNOWN_PLATFORM, Descriptor
from modelimage.errors import InvalidImage
from modelimage.publication import Publication
from modelimage.record import Record
from modelimage.referrers import (
    Artifact,
    ArtifactFile,
    ignore,
    list_referrers,
    make_artifact,
    read_files,
)
from modelimage.repository import ImageReader
from modelimage.resolve import ResolvedModel, list_models
from quantize.quality import MEDIA_TYPE, Quality

_NAME: Final = "quality.json"


def quality_artifact(subject: Descriptor, document: bytes, *, variant: str) -> Artifact:
    """The artifact that attaches `document` to `subject`. Equal arguments give equal bytes."""
    return make_artifact(
        subject,
        MEDIA_TYPE,
        [ArtifactFile(_NAME, MEDIA_TYPE, document)],
        {mediatypes.ANNOTATION_VARIANT: variant},
    )


def modelpack_manifest(published: Publication, record: Record) -> Descriptor:
    """The variant's ModelPack manifest, which all its indexes and tags lead to."""
    return next(
        manifest.descriptor
        for manifest in published.manifests
        if manifest.descriptor.platform == UNKNOWN_PLATFORM
        and manifest.descriptor.annotations.get(mediatypes.ANNOTATION_MODEL_KEY) == str(record.key)
    )


def published_quality(reader: ImageReader, model: ResolvedModel) -> Quality | None:
    """The published quality report of a quantized variant, if any; the last readable one listed wins.

    Raises any read error of the registry itself.
    """
    if model.record.quantization is None:
        return None
    found = None
    for manifest in list_models(reader, model.root):
        # The root may be an index of several variants: only this variant's manifests count.
        if (
            manifest.annotations.get(mediatypes.ANNOTATION_VARIANT, model.record.variant)
            == model.record.variant
        ):
            for artifact in list_referrers(reader, manifest, MEDIA_TYPE):
                found = _quality(reader, artifact) or found
    return found


def _quality(reader: ImageReader, artifact: Descriptor) -> Quality | None:
    # Anyone who may push can attach one: one that can't be read mustn't hide the image.
    file = next(
        read_files(reader, artifact, lambda layer: layer.media_type == MEDIA_TYPE, ignore), None
    )
    try:
        return Quality.parse(file.data) if file else None
    except InvalidImage:
        return None


def quality_text(quality: Quality) -> str:
    """The measurements in one line."""
    noise = f"signal to noise {quality.sqnr.mean:.1f} dB"
    found = quality.comparison
    if found is None:
        return noise
    return (
        f"perplexity x{found.perplexity_ratio:.3f}, KL {found.kl_divergence:.3f}, "
        f"top-1 agreement {100 * found.top1_agreement:.1f}%, {noise}"
    )
