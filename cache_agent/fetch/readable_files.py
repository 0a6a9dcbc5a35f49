"""What of a pull's files may be given out before they are in the store."""

from __future__ import annotations

from cache_agent.fetch.download import Download
from cache_agent.fetch.foreign.carriers import RangedLayer
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.readable import ReadablePrefix
from modelimage.digest import Digest


def ready_file(pull: Pull, file: Digest, position: int) -> ReadablePrefix | None:
    """How far a file can be read from `position` on, of what the pull's own repository gave; None for not yet."""
    for part in pull.parts:
        if isinstance(part, Download) and part.file.digest == file and part.is_open:
            return part.ready(position) if part.repository == pull.repository else None
    return None


def ready_layer(pull: Pull, layer: Digest, position: int) -> ReadablePrefix | None:
    """How far a layer that is one file as it is can be read from `position` on; None for not yet.

    As it came, but its end only once it was verified: for callers who know from elsewhere that they may have it.
    """
    for part in pull.parts:
        if isinstance(part, RangedLayer) and part.plan.layer.digest == layer:
            return part.ready(position)
    return None
