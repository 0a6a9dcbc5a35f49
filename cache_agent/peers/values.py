"""Messages between peers about a file, and their encoding; no sockets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from modelimage.bounds import MALFORMED
from modelimage.errors import RemoteRefused

MAX_HAVE_BYTES = 1 << 20
# As many as an answer has room for.
_MOST_CHUNKS = 4 * MAX_HAVE_BYTES
_MOST_BYTES = 1 << 62


@dataclass(frozen=True, slots=True)
class Member:
    """A node of the cluster. `id`: its peer server's `host:port`, which is also its name; `zone`: empty if unknown."""

    id: str
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Have:
    """A node's chunks of one file. Bit n of `have`: chunk n is verified; of `coming`: it is fetched from upstream now.

    `received` counts bytes, to show progress within a chunk too. Law: `Have.parse(h.to_bytes()) == h`.
    """

    count: int
    have: int
    coming: int = 0
    received: int = 0
    zone: str = ""

    @property
    def complete(self) -> bool:
        return self.have == (1 << self.count) - 1

    def to_bytes(self) -> bytes:
        document = {
            "chunks": self.count,
            "have": f"{self.have:x}",
            "coming": f"{self.coming:x}",
            "received": self.received,
            "zone": self.zone,
        }
        return json.dumps(document, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> Have:
        """Parse a peer's response. Raises RemoteRefused for one that is malformed or impossible."""
        try:
            document = json.loads(data)
            found = cls(
                int(document["chunks"]),
                int(document["have"], 16),
                int(document["coming"], 16),
                int(document["received"]),
                str(document["zone"]),
            )
        except MALFORMED as error:
            raise RemoteRefused(f"malformed answer of a peer: {error!r}") from error
        if min(found.count, found.have, found.coming, found.received) < 0:
            raise RemoteRefused("malformed answer of a peer: a negative number")
        # Before `complete`, which makes a number of as many bits.
        if found.count > _MOST_CHUNKS or found.received > _MOST_BYTES:
            raise RemoteRefused("malformed answer of a peer: more than any file has")
        if (found.have | found.coming) >> found.count:
            raise RemoteRefused("malformed answer of a peer: more chunks than the file has")
        return found


def bits(indices: Iterable[int]) -> int:
    """The number with exactly these bits set."""
    number = 0
    for index in indices:
        number |= 1 << index
    return number
