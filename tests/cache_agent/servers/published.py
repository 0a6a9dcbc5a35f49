"""Model images for the servers' tests, pushed to real registries by the client that builds use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from modelimage.access import Access, open_image_repository
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.mediatypes import OCI_LAYER_TAR
from modelimage.publication import publication
from modelimage.record import Record
from modelimage.reference import RegistryReference, parse_image
from modelimage.repository import BlobContent
from tests.cache_agent.images import make_record, noise


@dataclass(frozen=True)
class PublishedModel:
    """A model in a registry: its reference, its records, the files of the first, and every blob and manifest."""

    image: str
    records: Sequence[Record]
    files: Mapping[str, bytes]
    blobs: Mapping[Digest, bytes]
    manifests: Mapping[Digest, bytes]

    @property
    def record(self) -> Record:
        return self.records[0]

    @property
    def weight_layer(self) -> Digest:
        """The layer with the largest file."""
        return max(self.record.layers, key=lambda layer: layer.size).digest


def model_files(seed: int, size: int = 3_000_000) -> dict[str, bytes]:
    """A checkpoint's worth of files: a weight file, a config and nested small ones."""
    return {
        "config.json": b'{"model_type": "llama", "seed": %d}' % seed,
        "model.safetensors": noise(size, seed),
        "sub/tokenizer.json": noise(20_000, seed + 1),
    }


def records_of(
    files: Mapping[str, bytes], *, source: str = "test", revision: str = ""
) -> tuple[Record, dict[Digest, bytes]]:
    """A record whose weight file has a layer of its own."""
    small = {path: data for path, data in files.items() if path != "model.safetensors"}
    weights = {"model.safetensors": files["model.safetensors"]}
    record, blobs = make_record([weights, small], source=source)
    return replace(record, revision=revision), blobs


def publish(
    image: str,
    records: Sequence[Record],
    blobs: Mapping[Digest, bytes],
    files: Mapping[str, bytes],
    access: Access | None = None,
) -> PublishedModel:
    """Push what a build would publish for these records."""
    reference = parse_image(image)
    assert isinstance(reference, RegistryReference)
    made = publication(records, version=reference.name)
    writer = open_image_repository(reference, access or Access())
    every = {**blobs, **{each.descriptor.digest: each.data for each in made.blobs}}
    for digest, data in every.items():
        writer.put_blob(_content(digest, data))
    for manifest in made.manifests:
        writer.put_manifest(manifest.descriptor, manifest.data)
    for tag in made.tags:
        manifest = made.manifest(tag)
        writer.put_manifest(manifest.descriptor, manifest.data, tag)
    manifests = {each.descriptor.digest: each.data for each in made.manifests}
    return PublishedModel(image, records, files, every, manifests)


def publish_model(image: str, seed: int = 1, access: Access | None = None) -> PublishedModel:
    """Push a small model."""
    files = model_files(seed)
    record, blobs = records_of(files)
    return publish(image, [record], blobs, files, access)


def _content(digest: Digest, data: bytes) -> BlobContent:
    def read(offset: int) -> Iterator[bytes]:
        yield data[offset:]

    return BlobContent(Descriptor(OCI_LAYER_TAR, digest, len(data)), read)
