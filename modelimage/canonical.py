"""One way to write JSON as bytes, so that equal documents have equal digests.

Sorted keys, no spaces, UTF-8 without escapes, a newline at no end: the subset of RFC 8785 that documents
without floating-point numbers need.
"""

from __future__ import annotations

import json
from typing import Any

from modelimage.errors import InvalidImage


def to_bytes(document: object) -> bytes:
    """The canonical bytes of a JSON document. Law: `parse(to_bytes(d)) == d`."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def parse(data: bytes, *, what: str) -> dict[str, Any]:
    """Parse bytes that must be a JSON object in UTF-8. `what` names it in the InvalidImage raised."""
    try:
        # Decoded here, since json would guess at UTF-16 and others, which no other reader of images does.
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidImage(f"{what} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidImage(f"{what} is not a JSON object")
    return document
