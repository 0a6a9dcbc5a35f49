"""What strangers' text may do in a log: little. It is bounded, and prints as it is."""

from __future__ import annotations

from typing import Final

MOST: Final = 16_384  # characters of one value


def shortened(text: str) -> str:
    """A text, or its beginning and its end, where an error's cause is."""
    if len(text) <= MOST:
        return text
    half = MOST // 2
    return f"{text[:half]} […{len(text) - 2 * half} characters…] {text[-half:]}"


def printable(text: str) -> str:
    """A text on one line in which control characters, and what no encoding has, are written as Python writes them."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
