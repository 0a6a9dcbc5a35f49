"""Finds the parts of a running pull's files that may be served before they are in the store."""

from __future__ import annotations

from cache_agent.fetch.download import Download
from cache_agent.fetch.foreign.layer_sinks import RangedLayer
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.values import ReadablePrefix
from modelimage.digest import Digest


def ready_file(pull: Pull, file: Digest, position: int) -> ReadablePrefix | None:
    """How far a file can be read from `position` on; None: not yet. Only bytes from the pull's own repository count."""
    for part in pull.parts:
        if isinstance(part, Download) and part.file.digest == file and part.is_open:
            # Another pull's download proves access to its own repository, not to this pull's.
            return part.ready(position) if part.repository == pull.repository else None
    return None


def ready_layer(pull: Pull, layer: Digest, position: int) -> ReadablePrefix | None:
    """How far a raw layer (a single file without a tar) can be read from `position` on; None: not yet.

    Bytes are unverified except the last chunk, which waits for the layer's digest. Callers must have authorized the
    client already.
    """
    for part in pull.parts:
        if isinstance(part, RangedLayer) and part.plan.layer.digest == layer:
            return part.ready(position)
    return None
