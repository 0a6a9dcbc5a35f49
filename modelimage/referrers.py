"""Artifacts attached to an image: SBOM, quality report, signature. Created, stored and listed by "subject".

An artifact is a manifest with a subject (image-spec v1.1) and a few small files. Registries with the referrers API
list it; for others, and in layouts, an index tagged `sha256-<hex>` does (distribution-spec, "Referrers Tag Schema").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor, descriptors
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.publication import Document
from modelimage.repository import BlobContent, ImageReader, ImageWriter
from modelimage.resolve import read_blob

# Files of artifacts are read into memory, so untrusted ones are bounded.
MAX_FILE_BYTES: Final = 64 << 20
EMPTY: Final = Document.from_bytes(mediatypes.OCI_EMPTY, b"{}")


@runtime_checkable
class ReferrersReader(Protocol):
    """A repository that can list the referrers of a manifest."""

    def referrers(self, subject: Digest) -> list[Descriptor]:
        """The manifests whose subject has this digest; empty if there are none."""


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A small file of an artifact."""

    name: str
    media_type: str
    data: bytes
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest with a subject, and the blobs that it lists."""

    manifest: Document
    blobs: tuple[Document, ...]


def make_artifact(
    subject: Descriptor,
    artifact_type: str,
    files: Sequence[ArtifactFile],
    annotations: Mapping[str, str] | None = None,
    *,
    config: Document = EMPTY,
) -> Artifact:
    """Build an artifact. Pure: equal files give an equal digest. Raises InvalidInput for an invalid media type."""
    if "/" not in artifact_type:
        raise InvalidInput(
            f"not a media type: {artifact_type!r}",
            hint="For example application/vnd.cyclonedx+json.",
        )
    blobs = [
        Document.from_bytes(
            file.media_type,
            file.data,
            annotations={mediatypes.ANNOTATION_TITLE: file.name, **file.annotations},
        )
        for file in files
    ]
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": config.descriptor.to_json(),
        "layers": [blob.descriptor.to_json() for blob in blobs],
        # Only type, digest and size: the subject's annotations would change the artifact's digest.
        "subject": Descriptor(subject.media_type, subject.digest, subject.size).to_json(),
    }
    if annotations:
        document["annotations"] = dict(annotations)
    manifest = Document.from_bytes(
        mediatypes.OCI_MANIFEST,
        canonical.to_bytes(document),
        artifact_type=artifact_type,
        annotations=dict(annotations or {}),
    )
    return Artifact(manifest, (config, *blobs))


def attach(writer: ImageWriter, artifact: Artifact, tag: str | None = None) -> None:
    """Store an artifact where the repository's `referrers` finds it. Idempotent."""
    # Blobs first: a manifest is accepted only if its blobs exist.
    for blob in artifact.blobs:
        writer.put_blob(blob_content(blob))
    writer.put_manifest(artifact.manifest.descriptor, artifact.manifest.data, tag)


def list_referrers(
    reader: ImageReader, subject: Descriptor, artifact_type: str | None = None
) -> list[Descriptor]:
    """The referrers of a manifest in a registry or layout, of one type or all; empty if the reader can't list them."""
    # A docker engine, for example, keeps images only.
    if not isinstance(reader, ReferrersReader):
        return []
    found = reader.referrers(subject.digest)
    return [each for each in found if artifact_type in (None, each.artifact_type)]


def blob_content(document: Document) -> BlobContent:
    """BlobContent for a small blob in memory."""
    return BlobContent(document.descriptor, lambda offset: iter([document.data[offset:]]))


def read_artifact(
    reader: ImageReader,
    descriptor: Descriptor,
    wanted: Callable[[Descriptor], bool] = lambda layer: True,
) -> list[ArtifactFile]:
    """The verified files of an artifact, of the layers that are `wanted`. Raises InvalidImage above 64 MiB per file."""
    what = f"artifact {descriptor.digest}"
    document = canonical.parse(reader.manifest(descriptor), what=what)
    files = []
    for layer in filter(wanted, descriptors(document, "layers", what=what)):
        name = layer.annotations.get(mediatypes.ANNOTATION_TITLE, layer.digest.short)
        data = read_blob(reader, layer, limit=MAX_FILE_BYTES)
        files.append(ArtifactFile(name, layer.media_type, data, layer.annotations))
    return files


def cosign_tags(subject: Digest) -> tuple[str, str, str]:
    """The tags where cosign keeps what it knows about a manifest: signatures, attestations, SBOMs.

    What cosign itself put there names no subject, so no registry lists it as a referrer.
    """
    sig, att, sbom = (f"sha256-{subject.hex}.{what}" for what in ("sig", "att", "sbom"))
    return sig, att, sbom


def fallback_tag(subject: Digest) -> str:
    """The tag of the index that lists a subject's referrers if the registry has no referrers API."""
    return f"sha256-{subject.hex}"


def subject_of(document: Mapping[str, Any]) -> Digest | None:
    """The digest of a manifest's subject; None if it has none."""
    value = document.get("subject")
    return Descriptor.from_json(value).digest if value is not None else None


def listed_referrers(index: bytes, *, what: str) -> list[Descriptor]:
    """The descriptors in an index of referrers. Raises InvalidImage."""
    return descriptors(canonical.parse(index, what=what), "manifests", what=what)


def with_referrer(listed: Sequence[Descriptor], referrer: Descriptor) -> Document:
    """The index with one more referrer; unchanged if it is already listed. Pure."""
    # Listed once: clients show every entry, and an artifact may be attached again after an interruption.
    known = any(each.digest == referrer.digest for each in listed)
    document = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_INDEX,
        "manifests": [each.to_json() for each in (listed if known else [*listed, referrer])],
    }
    return Document.from_bytes(mediatypes.OCI_INDEX, canonical.to_bytes(document))


def described_referrer(descriptor: Descriptor, document: Mapping[str, Any]) -> Descriptor:
    """A referrer's descriptor for an index: type and annotations come from its own manifest."""
    artifact_type = document.get("artifactType")
    # Older artifacts have no artifactType; image-spec v1.1 then takes the config's media type.
    if not artifact_type and isinstance(document.get("config"), Mapping):
        artifact_type = document["config"].get("mediaType")
    annotations = document.get("annotations") or {}
    return Descriptor.from_json(
        {
            "mediaType": descriptor.media_type,
            "digest": str(descriptor.digest),
            "size": descriptor.size,
            "artifactType": artifact_type,
            "annotations": annotations,
        }
    )
