"""Digests computed by earlier runs, so that an interrupted or repeated build doesn't read every file again.

One small file per layer under the user's cache directory, named by what identifies the bytes: paths in the layer,
and each file's device, inode, size, and both times to the nanosecond. A file that changed has another name here, so
nothing is ever trusted for other bytes; losing all of it costs time only.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from builder.plan import PlannedLayer
from builder.sources.base import RemoteFile
from modelimage import canonical, durable
from modelimage.digest import Digest
from modelimage.errors import WeightyardError
from modelimage.hashing import FileDigests, LayerDigests

_VERSION: Final = 1
# A filesystem's clock ticks coarsely: a file changed again within its last tick would show the same time.
SETTLED_SECONDS: Final = 2.0


class DigestCache:
    """Layer digests by the state of the files they were made from."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock

    def key(
        self,
        layer: PlannedLayer,
        locations: Mapping[str, Path],
        remote: Mapping[str, RemoteFile] | None = None,
    ) -> str | None:
        """What identifies the layer's present bytes; None when its files changed too lately to tell.

        Take it before the files are read. Raises NotFound, AccessDenied.
        """
        state: list[list[Any]] = []
        newest = 0.0
        for file in layer.files:
            if remote and file.path in remote:
                state.append([file.path, file.size, remote[file.path].identity])
                continue
            location = locations[file.path]
            with durable.reading(location):
                status = location.stat()
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
        """The digests kept under a key; None when there are none, or none that can be read."""
        path = self._path(key)
        try:
            with durable.reading(path):
                return _parse(path.read_bytes())
        except (WeightyardError, KeyError, TypeError, AttributeError):
            return None

    def remember(self, key: str, digests: LayerDigests) -> None:
        """Keep digests under a key, where that is possible."""
        # A cache directory that is read-only or full must not fail a build that needs nothing of it.
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
    document = canonical.parse(data, what="remembered digests")
    return LayerDigests(
        Digest.parse(document["layer"]),
        {
            path: FileDigests(Digest(file["sha256"]), tuple(map(str, file["blake3"])))
            for path, file in document["files"].items()
        },
    )
