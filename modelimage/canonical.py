"""Canonical JSON bytes, so that equal documents have equal digests.

Sorted keys, no spaces, UTF-8 without escapes, no final newline: the subset of RFC 8785 that suffices for documents
without floating-point numbers.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from modelimage.errors import InvalidImage

# A manifest of ten thousand layers has half of it.
_MOST: Final = 200_000
# For documents that list a model's files or chunks: the record of a model of 8 TB has a quarter of it.
MOST_OF_FILES: Final = 1_000_000
_HALF: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def to_bytes(document: object) -> bytes:
    """The canonical bytes of a JSON document. Law: `parse(to_bytes(d)) == d`."""
    # NaN and infinities aren't JSON, but `json` writes them by default, and other parsers refuse them.
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def check_halves(document: object, data: bytes) -> None:
    """Raise ValueError if a document that was parsed from `data` has text with half of a character.

    An escape can state one (RFC 8259, section 8.2), and such text can't be encoded again, nor shown.
    """
    if _HALF.search(data):
        json.dumps(document, ensure_ascii=False).encode()


def _finite(text: str) -> float:
    number = float(text)
    # `1e999` would be read as infinity, which JSON can't state and integers can't hold.
    if not math.isfinite(number):
        raise ValueError(f"a number isn't finite: {text[:40]}")
    return number


def parse(data: bytes, *, what: str, most: int = _MOST) -> dict[str, Any]:
    """Parse bytes as a UTF-8 JSON object. `what` names the document in the error. Raises InvalidImage.

    Also for a document of more than about `most` values, whatever its size.
    """
    # Counted before decoding: `[],[],...` takes 25 times its size in memory. Those in strings count too.
    if sum(map(data.count, (b",", b"[", b"{", b":"))) > most:
        raise InvalidImage(f"{what} has too many values")
    try:
        # Decoded explicitly: json.loads would also detect UTF-16 and UTF-32, which other image readers reject.
        document = json.loads(data.decode(), parse_float=_finite, parse_constant=_finite)
        check_halves(document, data)
    except (ValueError, RecursionError) as error:
        raise InvalidImage(f"{what} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidImage(f"{what} is not a JSON object")
    return document
