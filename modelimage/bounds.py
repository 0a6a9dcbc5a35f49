"""Numbers in text that comes from outside: headers, labels, configurations. Bounded before they are converted.

Python converts any length of digits, at a cost that grows with its square, and `str.isdigit` accepts digits such as
`²` that `int` refuses.
"""

from __future__ import annotations

import math
from typing import Final

# What taking apart a document of anybody's may raise: members of other types, numbers beyond a float, endless nesting.
MALFORMED: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
# Far more than any count of a model: parameters, positions, bytes of one value.
_MOST: Final = 10**15
# Of a document that people write: a Workspace, an agent's settings.
MOST_DOCUMENT_BYTES: Final = 1 << 20


def parse_count(text: object, *, most: int = _MOST) -> int | None:
    """A whole number from 0 to `most`, written in ASCII digits; None for anything else."""
    if not isinstance(text, str) or not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0") or "0"
    if len(digits) > len(str(most)):
        return None
    number = int(digits)
    return number if number <= most else None


def positive(value: object) -> int:
    """A value of a JSON document if it is a whole number from 1 to 10**15, else 0."""
    # `type`, not isinstance: JSON's true would count as 1.
    return value if type(value) is int and 0 < value <= _MOST else 0


def clamp(value: object, least: float, most: float) -> float:
    """A number of a JSON document within bounds. Raises TypeError for what isn't a number, ValueError for NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"not a number: {type(value).__name__}")
    # Compared before it is converted: an integer may be too large for a float.
    if not least <= value:
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("NaN")
        return least
    return most if value > most else float(value)
