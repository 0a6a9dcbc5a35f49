"""Small model images for the cache's tests: a checkpoint's worth of files, its record, its layers, in memory.

`MemoryImage` is an `ImageReader` of its own, so a test can put a fault in front of it; `write_layout` puts the same
image into a real OCI layout.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from blake3 import blake3

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import NotFound
from modelimage.publication import Publication, publication
from modelimage.ranges import ByteRange
from modelimage.recipe import FileSlice, LayerFile, Literal, layer_recipe
from modelimage.record import CHUNK_SIZE, ModelFacts, Record, RecordFile, RecordLayer, Role
from modelimage.repository import BlobStream


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that look like weights: the same for the same seed, incompressible."""
    return blake3(b"noise %d" % seed).digest(length=size)


def chunk_digests(data: bytes) -> tuple[str, ...]:
    return tuple(
        str(blake3(data[at : at + CHUNK_SIZE]).hexdigest())
        for at in range(0, len(data), CHUNK_SIZE)
    )


def layer_bytes(files: Mapping[str, bytes]) -> bytes:
    """The blob of the layer that holds these files."""
    recipe = layer_recipe(
        LayerFile(path, len(data), Digest.of(data)) for path, data in files.items()
    )
    out = bytearray()
    for segment in recipe.segments:
        match segment:
            case Literal(data):
                out += data
            case FileSlice(file, start, stop):
                out += files[file.path][start:stop]
    return bytes(out)


def make_record(
    layers: Sequence[Mapping[str, bytes]], *, variant: str = "bf16", source: str = "test"
) -> tuple[Record, dict[Digest, bytes]]:
    """A record over these layers' files, and the layers' blobs by digest."""
    blobs: dict[Digest, bytes] = {}
    record_layers, files = [], []
    for contents in layers:
        blob = layer_bytes(contents)
        digest = Digest.of(blob)
        if digest in blobs:
            continue
        blobs[digest] = blob
        record_layers.append(RecordLayer(digest, len(blob), Role.WEIGHT))
        files += [
            RecordFile(path, len(data), Digest.of(data), Role.WEIGHT, digest, chunk_digests(data))
            for path, data in contents.items()
        ]
    record = Record(
        variant=variant,
        source=source,
        revision="",
        license="",
        facts=ModelFacts(),
        files=tuple(sorted(files, key=lambda file: file.path)),
        layers=tuple(record_layers),
    )
    return record, blobs


@dataclass
class MemoryImage:
    """An image repository in memory. `requests` lists the ranges of layers that were asked for."""

    blobs: dict[Digest, bytes]
    manifests: dict[Digest, tuple[Descriptor, bytes]]
    names: dict[str, Digest]
    requests: list[tuple[Digest, ByteRange]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(
        cls, records: Sequence[Record], blobs: Mapping[Digest, bytes], tag: str = "v1"
    ) -> MemoryImage:
        published: Publication = publication(records, version=tag)
        every = {**blobs, **{b.descriptor.digest: b.data for b in published.blobs}}
        manifests = {m.descriptor.digest: (m.descriptor, m.data) for m in published.manifests}
        return cls(every, manifests, dict(published.tags))

    def resolve(self, name: str) -> Descriptor:
        digest = self.names.get(name)
        if digest is None:
            try:
                digest = Digest.parse(name)
            except Exception as error:
                raise NotFound(f"no tag {name}") from error
        if digest not in self.manifests:
            raise NotFound(f"no manifest {digest}")
        return self.manifests[digest][0]

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self.manifests[descriptor.digest][1]

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        data = self.blobs.get(descriptor.digest)
        if data is None:
            raise NotFound(f"no blob {descriptor.digest}")
        if wanted is not None:
            with self.lock:
                self.requests.append((descriptor.digest, wanted))
            data = data[wanted.start : wanted.stop]
        yield BytesStream(data)

    def tags(self) -> list[str]:
        return sorted(self.names)

    def fetched(self) -> int:
        """Bytes of ranges that were asked for."""
        return sum(len(wanted) for _, wanted in self.requests)


@dataclass
class BytesStream:
    """A blob stream over bytes, in reads of odd sizes."""

    data: bytes
    position: int = 0
    closed: bool = False

    def readinto(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), len(self.data) - self.position, 70_001)
        buffer[:count] = self.data[self.position : self.position + count]
        self.position += count
        return count

    def close(self) -> None:
        self.closed = True


def simple_image(
    *, weights: Sequence[int] = (CHUNK_SIZE + 1000, 5000), seed: int = 0, tag: str = "v1"
) -> tuple[MemoryImage, Record, dict[str, bytes]]:
    """An image with a layer for each weight file and a bundle of small files (two equal, one empty)."""
    contents: dict[str, bytes] = {
        f"model-{number:05d}.safetensors": noise(size, seed * 100 + number)
        for number, size in enumerate(weights)
    }
    small = {
        "config.json": b'{"seed": %d}' % seed,
        "copy/of/tokenizer.json": noise(90_000, 77),
        "empty.txt": b"",
        "tokenizer.json": noise(90_000, 77),
        # Longer than one read of a stream, in the middle of a bundle.
        "merges.txt": noise(200_000, seed),
    }
    record, blobs = make_record([*({path: data} for path, data in contents.items()), small])
    return MemoryImage.of([record], blobs, tag), record, {**contents, **small}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
