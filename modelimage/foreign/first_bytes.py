"""The packing of a tar layer by its first bytes, as container runtimes determine it. Pure.

Media types lie: tools that reuse a blob of a registry may name another compression than the blob has.
"""

from __future__ import annotations

from typing import Final

from modelimage.foreign.model import Packing
from modelimage.tar import BLOCK

_GZIP: Final = b"\x1f\x8b\x08"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
# A zstd file may begin with a frame to skip (RFC 8878, 3.1.2): its first byte is 0x50 to 0x5f.
_SKIPPABLE: Final = b"\x2a\x4d\x18"
_CHECKSUM: Final = slice(148, 156)


def packing_of(head: bytes) -> Packing | None:
    """The packing of a blob with this beginning (512 bytes or all of it); None if it is none of the three."""
    if head.startswith(_GZIP):
        return Packing.TAR_GZIP
    if head.startswith(_ZSTD) or (head[1:4] == _SKIPPABLE and 0x50 <= head[0] <= 0x5F):
        return Packing.TAR_ZSTD
    return Packing.TAR if _is_tar(head[:BLOCK]) else None


def _is_tar(block: bytes) -> bool:
    """Whether a block is a tar header, or zeros as in an empty archive."""
    if len(block) < BLOCK:
        return False
    if not any(block):
        return True
    stated = block[_CHECKSUM].strip(b" \0")
    blanked = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    return stated.isdigit() and stated.lstrip(b"0") == b"%o" % blanked
