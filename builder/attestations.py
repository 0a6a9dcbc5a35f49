"""What a build attaches to its images on request: an ML-BOM of each variant, and the provenance of all. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from builder import mlbom, provenance
from builder.quality_report import modelpack_manifest
from modelimage import mediatypes
from modelimage.digest import Digest
from modelimage.installation import installed_version
from modelimage.publication import Publication
from modelimage.record import Record
from modelimage.referrers import Artifact, ArtifactFile, make_artifact


def sboms(
    published: Publication, records: Sequence[Record], created: str | None
) -> Iterator[Artifact]:
    """An ML-BOM for each variant, about the ModelPack manifest that all its indexes list."""
    for record in records:
        data = mlbom.ml_bom(record, builder_version=installed_version(), created=created)
        file = ArtifactFile(mlbom.FILE_NAME, mlbom.MEDIA_TYPE, data)
        stated = {mediatypes.ANNOTATION_VARIANT: record.variant}
        yield make_artifact(modelpack_manifest(published, record), mlbom.MEDIA_TYPE, [file], stated)


def provenances(
    published: Publication,
    records: Sequence[Record],
    parameters: Mapping[str, Any],
    bases: Sequence[Digest],
    created: str | None,
) -> Iterator[Artifact]:
    """The statement of the build, attached to everything that it tagged."""
    data = provenance.provenance(
        published,
        records,
        parameters=parameters,
        bases=bases,
        builder_version=installed_version(),
        created=created,
    )
    file = ArtifactFile(provenance.FILE_NAME, provenance.MEDIA_TYPE, data)
    stated = {"in-toto.io/predicate-type": provenance.PREDICATE_TYPE}
    by_digest = {each.descriptor.digest: each.descriptor for each in published.manifests}
    # Several tags may name one manifest, which needs one statement.
    for digest in dict.fromkeys(published.tags.values()):
        yield make_artifact(by_digest[digest], provenance.MEDIA_TYPE, [file], stated)
