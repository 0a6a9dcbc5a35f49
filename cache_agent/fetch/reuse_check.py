"""Decides whether a file already in the store may be used for this pull.

A record is its author's claim. Naming a sha256 shows neither that its image contains those bytes nor that the caller
may read them; otherwise a forged record would obtain another tenant's file. A file that was fetched through this layer
of this repository is reused directly. Any other is reused only if the layer, rebuilt here from local bytes, has the
digest in the manifest, and the caller's own credentials can read that layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cache_agent.store.partials import open_for_reading, read_range
from cache_agent.store.store import Store
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, NotFound, RemoteRefused, Unreachable
from modelimage.ranges import ByteRange
from modelimage.recipe import FileSlice, Literal
from modelimage.record import Record, RecordFile
from modelimage.repository import ImageReader


@dataclass
class ReuseCheck:
    """Authorizes reuse for one pull; each layer is checked at most once.

    `damaged` collects stored files that fail verification: the pull fetches replacements. `rebuilt` maps a layer to its
    digest as computed from local bytes, here or during the download.
    """

    store: Store
    repository: str
    reader: ImageReader
    layers: Sequence[Descriptor]
    damaged: set[Digest] = field(default_factory=set)
    rebuilt: dict[Digest, Digest] = field(default_factory=dict)
    _verdicts: dict[Digest, bool] = field(default_factory=dict)

    def allowed(self, record: Record, file: RecordFile) -> bool:
        """Whether the stored file with this sha256 may be used; False also when there is none."""
        stored = self.store.files.get(file.digest)
        if stored is None or stored.size != file.size:
            return False
        # A file whose size or time changed since its verification is hashed again before any use.
        if not self.store.files.is_untouched(stored) and not self.store.files.reverify(stored):
            self.damaged.add(file.digest)
            return False
        if stored.chunks and stored.chunks != file.chunks:
            # One sha256, two lists of chunk digests: one of the two records lies.
            return False
        if self.store.files.is_authorized(self.repository, file):
            return True
        if file.layer not in self._verdicts:
            self._verdicts[file.layer] = self._proves(record, file.layer)
        return self._verdicts[file.layer]

    def _proves(self, record: Record, layer: Digest) -> bool:
        files = record.layer_files(layer)
        if any(self.store.files.get(file.digest) is None for file in files):
            return False
        if layer not in self.rebuilt:
            self.rebuilt[layer] = self._rebuilt(record, layer)
        # Both are needed: the digest shows that the image has these bytes, the read that the caller may have them.
        return self._can_read(layer) and self.rebuilt[layer] == layer

    def _can_read(self, layer: Digest) -> bool:
        descriptor = next((each for each in self.layers if each.digest == layer), None)
        return descriptor is not None and can_read(self.reader, descriptor)

    def _rebuilt(self, record: Record, layer: Digest) -> Digest:
        hashed = hashlib.sha256()
        for segment in record.recipe(layer).segments:
            match segment:
                case Literal(data):
                    hashed.update(data)
                case FileSlice(file, start, stop):
                    path = self.store.paths.file(file.digest)
                    with open_for_reading(path) as fd:
                        for view in read_range(fd, path, ByteRange(start, stop)):
                            hashed.update(view)
        return Digest(hashed.hexdigest())


def can_read(reader: ImageReader, layer: Descriptor) -> bool:
    """Whether a layer exists and these credentials can read it: fetches its first byte."""
    # Everyone has an empty layer's bytes: reading it proves nothing.
    if layer.size == 0:
        return False
    try:
        with reader.blob(layer, ByteRange(0, 1)) as stream:
            return stream.readinto(memoryview(bytearray(1))) == 1
    except (NotFound, AccessDenied, RemoteRefused, Unreachable):
        return False
