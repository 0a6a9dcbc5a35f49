"""Artifacts attached to an image: SBOM, quality report, signature. Created, stored and listed by "subject".

An artifact is a manifest with a subject (image-spec v1.1) and a few small files. Registries with the referrers API
list it; for others, and in layouts, an index tagged `sha256-<hex>` does (distribution-spec, "Referrers Tag Schema").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import (
    DigestMismatch,
    InvalidImage,
    InvalidInput,
    NotFound,
    RemoteRefused,
    WeightyardError,
)
from modelimage.publication import Document
from modelimage.repository import BlobContent, ImageReader, ImageWriter
from modelimage.resolve import read_blob

# Files of artifacts are read into memory, so untrusted ones are bounded.
MAX_FILE_BYTES: Final = 64 << 20
EMPTY: Final = Document.from_bytes(mediatypes.OCI_EMPTY, b"{}")
# Of one manifest. Anyone who may push can attach: this is far more than any image has.
MAX_REFERRERS: Final = 10_000
# What may be wrong with an attachment, whose author need not be the image's.
UNSOUND: Final = (InvalidImage, DigestMismatch, NotFound, RemoteRefused)

# Told why something attached is left out.
LeaveOut = Callable[[WeightyardError], None]


def ignore(error: WeightyardError) -> None:
    """Leave something out without a word."""


@runtime_checkable
class ReferrersReader(Protocol):
    """A repository that can list the referrers of a manifest."""

    def referrers(
        self, subject: Digest, artifact_type: str | None = None, leave_out: LeaveOut = ignore
    ) -> list[Descriptor]:
        """The manifests whose subject has this digest, of one type or all, once each; at most MAX_REFERRERS.

        `leave_out` is told of entries that can't be read, and of there being more.
        """


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
    reader: ImageReader,
    subject: Descriptor,
    artifact_type: str | None = None,
    leave_out: LeaveOut = ignore,
) -> list[Descriptor]:
    """The referrers of a manifest in a registry or layout, of one type or all; empty if the reader can't list them.

    `leave_out` as in `ReferrersReader`.
    """
    # A docker engine, for example, keeps images only.
    if not isinstance(reader, ReferrersReader):
        return []
    found = reader.referrers(subject.digest, artifact_type, leave_out)
    if artifact_type is None:
        return found
    # Lists that older tools wrote state no types.
    typed = (each if each.artifact_type else _described(reader, each) for each in found)
    return [each for each in typed if each.artifact_type == artifact_type]


def _described(reader: ImageReader, referrer: Descriptor) -> Descriptor:
    with suppress(*UNSOUND):
        document = canonical.parse(reader.manifest(referrer), what=f"artifact {referrer.digest}")
        return described_referrer(referrer, document)
    return referrer


def gather(
    listed: Iterable[object], artifact_type: str | None = None, leave_out: LeaveOut = ignore
) -> list[Descriptor]:
    """The referrers in a list of descriptors as JSON, as `ReferrersReader.referrers` returns them. Pure.

    Entries without a type are of any. Reads no more of the list than MAX_REFERRERS entries.
    """
    found: dict[Digest, Descriptor] = {}
    for count, value in enumerate(listed):
        # Those of other types count, too: a registry that ignores the type may list them without end.
        if count == MAX_REFERRERS:
            leave_out(
                InvalidImage(
                    f"more than {MAX_REFERRERS:,} artifacts are attached to one manifest; the rest isn't read"
                )
            )
            break
        # Anyone who may push can write the list: one bad entry mustn't hide the others.
        try:
            each = Descriptor.from_json(value)
        except InvalidImage as error:
            leave_out(error)
            continue
        if artifact_type is None or each.artifact_type in (None, artifact_type):
            found.setdefault(each.digest, each)
    return list(found.values())


def blob_content(document: Document) -> BlobContent:
    """BlobContent for a small blob in memory."""
    return BlobContent(document.descriptor, lambda offset: iter([document.data[offset:]]))


def read_artifact(
    reader: ImageReader,
    descriptor: Descriptor,
    wanted: Callable[[Descriptor], bool] = lambda layer: True,
) -> list[ArtifactFile]:
    """The verified files of an artifact, of the layers that are `wanted`. Raises InvalidImage above 64 MiB per file."""
    return list(read_files(reader, descriptor, wanted, _refuse))


def read_files(
    reader: ImageReader,
    descriptor: Descriptor,
    wanted: Callable[[Descriptor], bool],
    leave_out: LeaveOut,
) -> Iterator[ArtifactFile]:
    """The verified files of an artifact, each when it is reached; `leave_out` is told of those that can't be read."""
    what = f"artifact {descriptor.digest}"
    try:
        layers = canonical.parse(reader.manifest(descriptor), what=what).get("layers")
        if not isinstance(layers, list):
            raise InvalidImage(f"{what} has no list of layers")
    except UNSOUND as error:
        leave_out(error)
        return
    for value in layers:
        try:
            layer = Descriptor.from_json(value)
            if not wanted(layer):
                continue
            data = read_blob(reader, layer, limit=MAX_FILE_BYTES)
        except UNSOUND as error:
            leave_out(error)
            continue
        name = layer.annotations.get(mediatypes.ANNOTATION_TITLE, layer.digest.short)
        yield ArtifactFile(name, layer.media_type, data, layer.annotations)


def _refuse(error: WeightyardError) -> None:
    raise error


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


def listed_entries(index: bytes, *, what: str) -> list[object]:
    """The entries of an index of referrers, as JSON. Raises InvalidImage if it is no index."""
    entries = canonical.parse(index, what=what).get("manifests")
    # Go's tools write an empty list as null.
    if not isinstance(entries, list | None):
        raise InvalidImage(f"{what} has no list of manifests")
    return entries or []


def with_referrer(listed: Sequence[object], referrer: Descriptor) -> Document | None:
    """The index of these entries and one more referrer; None if it is already listed. Pure."""
    # Listed once: clients show every entry, and an artifact may be attached again after an interruption.
    digest = str(referrer.digest)
    if any(isinstance(each, Mapping) and each.get("digest") == digest for each in listed):
        return None
    document = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_INDEX,
        # The entries of others stay as they are, whatever they hold.
        "manifests": [*listed, referrer.to_json()],
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
