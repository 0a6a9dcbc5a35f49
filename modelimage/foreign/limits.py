"""Bounds on a foreign image; beyond them it is refused.

An untrusted image may claim a million files or inflate a megabyte to a terabyte. Each bound is far above any model
published so far; callers with a budget lower them.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelimage.errors import InvalidImage


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds in bytes and counts.

    `ratio` is decompressed bytes per compressed byte of a layer, above `slack` bytes. `link_steps`: names that are
    looked up to resolve all links. `literal_bytes` refuses nothing: a layer with more than that around its files is not
    stored in a form that can be rebuilt.
    """

    members: int = 100_000
    file_bytes: int = 4 << 40
    total_bytes: int = 16 << 40
    ratio: int = 200
    slack: int = 64 << 20
    link_steps: int = 4_000_000
    literal_bytes: int = 16 << 20

    def check_members(self, count: int) -> None:
        """Raise InvalidImage above the bound."""
        if count > self.members:
            raise InvalidImage(
                f"the image has more than {self.members} entries",
                hint="Leave everything but the model out of the image.",
            )

    def check_links(self, steps: int) -> None:
        """Raise InvalidImage above the bound."""
        if steps > self.link_steps:
            raise InvalidImage(
                "the image's links lead through too many names",
                hint="Leave everything but the model out of the image.",
            )

    def check_size(self, path: str, size: int) -> None:
        """Raise InvalidImage for a file above the bound."""
        if size > self.file_bytes:
            raise InvalidImage(
                f"{path!r} claims {size} bytes, above the limit of {self.file_bytes}"
            )

    def check_inflated(self, taken: int, given: int) -> None:
        """Raise InvalidImage if `taken` compressed bytes gave more than allowed."""
        if given > self.total_bytes or given > self.slack + self.ratio * taken:
            raise InvalidImage(
                f"a layer's compression ratio is too high: {taken} bytes decompress to {given} or more",
                hint="Weights don't compress this well: the layer is damaged or malicious.",
            )
