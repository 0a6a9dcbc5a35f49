"""Caches digests computed by earlier runs, so that an interrupted or repeated build doesn't read every file again.

One small file per layer in the user's cache directory. Its name identifies the bytes: the paths in the layer, and each
file's device, inode, size, and both times in nanoseconds. A changed file has another name here, so digests are never
used for other bytes; losing the cache costs only time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from builder.layer_plan import PlannedLayer
from builder.sources.interface import RemoteFile
from modelimage import canonical, durable
from modelimage.digest import Digest
from modelimage.errors import WeightyardError
from modelimage.hasher import FileDigests, LayerDigests

_VERSION: Final = 1
# Filesystem clocks are coarse: a file changed twice within one tick has the same time.
SETTLED_SECONDS: Final = 2.0


class DigestCache:
    """Layer digests by the state of the files in the layer."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock

    def key(
        self,
        layer: PlannedLayer,
        locations: Mapping[str, Path],
        remote: Mapping[str, RemoteFile] | None = None,
    ) -> str | None:
        """The key of the layer's current bytes; None if its files changed too recently to be sure.

        Compute it before the files are read. Raises NotFound, AccessDenied.
        """
        state: list[list[Any]] = []
        # The state before reading: if a file changes meanwhile, its digest is stored under a key that won't recur.
        newest = 0.0
        for file in layer.files:
            # A remote file's identity pins its bytes.
            if remote and file.path in remote:
                state.append([file.path, file.size, remote[file.path].identity])
                continue
            location = locations[file.path]
            with durable.reading(location):
                status = location.stat()
            # `cp -p` and `touch` set the one time to any value; nothing sets the time
            # of the last change of the inode.
            newest = max(newest, status.st_mtime, status.st_ctime)
            state.append(
                [
                    *(file.path, file.size, status.st_size, status.st_mtime_ns),
                    *(status.st_ctime_ns, status.st_ino, status.st_dev),
                ]
            )
        if newest > self._clock() - SETTLED_SECONDS:
            return None
        return hashlib.sha256(canonical.to_bytes([_VERSION, state])).hexdigest()

    def recall(self, key: str) -> LayerDigests | None:
        """The digests stored under a key; None if there are none, or if they are unreadable."""
        path = self._path(key)
        try:
            with durable.reading(path):
                return _parse(path.read_bytes())
        # A damaged entry counts as missing: the digests are computed again.
        except (WeightyardError, KeyError, TypeError, AttributeError):
            return None

    def remember(self, key: str, digests: LayerDigests) -> None:
        """Store digests under a key, if possible."""
        # A read-only or full cache directory must not fail a build that doesn't depend on it.
        with suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            durable.write_file(self._path(key), canonical.to_bytes(_to_json(digests)))

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.json"


def _to_json(digests: LayerDigests) -> dict[str, Any]:
    return {
        "layer": str(digests.digest),
        "files": {
            path: {"sha256": file.digest.hex, "blake3": list(file.chunks)}
            for path, file in digests.files.items()
        },
    }


def _parse(data: bytes) -> LayerDigests:
    document = canonical.parse(data, what="a digest cache")
    return LayerDigests(
        Digest.parse(document["layer"]),
        {
            path: FileDigests(Digest(file["sha256"]), tuple(map(str, file["blake3"])))
            for path, file in document["files"].items()
        },
    )
