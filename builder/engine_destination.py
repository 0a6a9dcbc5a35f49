"""A docker engine as a build's destination: an ImageWriter that loads each image once its tag is set.

An engine can't be queried for blobs and loads an image as a whole, so contents are only recorded when they are put.
While an image is loaded they are read from their sources, verified and streamed. Tags of other manifests are ignored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from builder.reporter import Reporter
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.docker_engine import DockerEngine, archive, image_for
from modelimage.errors import NotFound
from modelimage.mediatypes import INDEX_TYPES
from modelimage.ranges import ByteRange
from modelimage.repository import BlobContent


class EngineWriter:
    """Loads images tagged `name:tag` into the engine selected by `environment`. Connects only to load."""

    def __init__(self, name: str, environment: Mapping[str, str], reporter: Reporter) -> None:
        self._name = name
        self._environment = environment
        self._reporter = reporter
        self._contents: dict[Digest, BlobContent] = {}
        self._manifests: dict[Digest, bytes] = {}

    def check(self) -> None:
        """Raise Unreachable if the engine doesn't respond."""
        with contextlib.closing(DockerEngine(self._environment)) as engine:
            engine.platform()

    # As an ImageWriter

    def has_blob(self, descriptor: Descriptor) -> bool:
        # Recorded contents count as present, so each is put only once.
        return descriptor.digest in self._contents

    def put_blob(self, content: BlobContent, progress: Callable[[int], None] | None = None) -> None:
        self._contents[content.descriptor.digest] = content

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        """Record a manifest; if it is an index with a tag, load its image for the engine's platform."""
        # Kept in memory: the engine gets an image only whole, and asks for nothing before.
        self._manifests[descriptor.digest] = data
        # Only an index has image manifests, which the engine can load.
        if tag is not None and descriptor.media_type in INDEX_TYPES:
            self._load(descriptor, f"{self._name}:{tag}")

    def _load(self, root: Descriptor, name: str) -> None:
        with contextlib.closing(DockerEngine(self._environment)) as engine:
            image = image_for(self, root, engine.platform())
            with self._reporter.progress(f"loading {name}", image.size) as progress:
                engine.load(archive(self, image, [name], progress.advance))

    # As an ImageReader of the recorded contents, for `archive`

    def resolve(self, name: str) -> Descriptor:
        raise NotFound(f"{name} is not tagged yet")

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self._manifests[descriptor.digest]

    @contextlib.contextmanager
    def blob(
        self, descriptor: Descriptor, wanted: ByteRange | None = None
    ) -> Iterator[ContentStream]:
        yield ContentStream(self._contents[descriptor.digest].read(wanted.start if wanted else 0))

    def tags(self) -> list[str]:
        return []


class ContentStream:
    """A BlobStream over buffers of any size."""

    def __init__(self, buffers: Iterator[memoryview | bytes]) -> None:
        self._buffers = buffers
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        while not self._rest:
            following = next(self._buffers, None)
            if following is None:
                return 0
            self._rest = memoryview(following)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._rest, self._buffers = memoryview(b""), iter(())
