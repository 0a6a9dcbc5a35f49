"""Content digests, parsed once at the edge.

The grammar is the OCI image specification's (descriptor.md, "Digests"). Only sha256 is accepted: it is the one
identity that all tiers share, as the Hub's LFS oid, a layer's digest, and a file's path in the store.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from modelimage.errors import InvalidInput

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 digest. `hex` is 64 lower-case hexadecimal digits.

    Law: `Digest.parse(str(d)) == d`.
    """

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise InvalidInput(
                f"not a sha256 digest: {self.hex[:80]!r}",
                hint="Write sha256: and 64 lower-case hexadecimal digits.",
            )

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse `sha256:<64 hex>`. Raises InvalidInput."""
        algorithm, _, value = text.partition(":")
        if algorithm != "sha256":
            raise InvalidInput(
                f"not a sha256 digest: {text[:80]!r}", hint="Only sha256 digests are supported."
            )
        return cls(value)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """The digest of bytes in memory."""
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def short(self) -> str:
        """The first 12 hexadecimal digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"sha256:{self.hex}"
