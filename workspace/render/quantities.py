"""Normalizes Kubernetes quantities to the API server's form, so that applied and stored objects compare equal.

The server parses `1024Mi`, `0.5` and `2000m` and stores `1Gi`, `500m` and `2` (k8s.io/apimachinery/pkg/api/resource:
Quantity.CanonicalizeBytes). Text that isn't a quantity is left unchanged: the server refuses it with a better message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

_QUANTITY: Final = re.compile(
    # Bounded: arithmetic on thousands of digits or exponents would hold the interpreter for minutes.
    r"([+-]?)([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?"
)
_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = {
    "n": -9,
    "u": -6,
    "m": -3,
    "": 0,
    "k": 3,
    "M": 6,
    "G": 9,
    "T": 12,
    "P": 15,
    "E": 18,
}


def canonical(text: str) -> str:
    """A quantity's stored form. Law: `canonical(canonical(q)) == canonical(q)`, and both mean the same."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        return text
    sign, number, suffix = match[1], Fraction(match[2]), match[3] or ""
    if suffix in _BINARY[1:]:
        value = number * 1024 ** _BINARY.index(suffix)
        # Binary quantities below 1024 and fractional ones are stored in decimal form.
        body = _binary(value) if value >= 1024 and value.denominator == 1 else _decimal(value)
    elif suffix[:1] in ("e", "E") and len(suffix) > 1:
        exponent = int(suffix[1:])
        body = _exponent(number * Fraction(10) ** exponent)
    else:
        body = _decimal(number * Fraction(10) ** _DECIMAL[suffix])
    return f"-{body}" if sign == "-" and body != "0" else body


def value_of(text: str) -> Fraction | None:
    """What a quantity means; None for text that isn't one."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        return None
    number, suffix = Fraction(match[2]), match[3] or ""
    if suffix in _BINARY[1:]:
        scale = Fraction(1024) ** _BINARY.index(suffix)
    elif len(suffix) > 1:
        scale = Fraction(10) ** int(suffix[1:])
    else:
        scale = Fraction(10) ** _DECIMAL[suffix]
    return number * scale * (-1 if match[1] == "-" else 1)


def canonical_all(quantities: Mapping[str, str]) -> dict[str, str]:
    """Every value of a resource list in its stored form."""
    return {name: canonical(value) for name, value in quantities.items()}


def total_bytes(count: int) -> str:
    """A byte count, rounded up to MiB, as a quantity."""
    return canonical(f"{-(-count // (1 << 20))}Mi")


def _binary(value: Fraction) -> str:
    power = 0
    while power + 1 < len(_BINARY) and value % 1024 == 0:
        value, power = value / 1024, power + 1
    return f"{value}{_BINARY[power]}"


def _nano(value: Fraction) -> int:
    """The value in units of 10^-9, rounded up: Kubernetes keeps nothing finer."""
    scaled = value * 10**9
    return -(-scaled.numerator // scaled.denominator)


def _decimal(value: Fraction) -> str:
    nano, exponent = _nano(value), -9
    if nano == 0:
        return "0"
    # Up to E: Kubernetes has no larger suffix.
    while exponent < 18 and nano % 1000 == 0:
        nano, exponent = nano // 1000, exponent + 3
    suffix = next(s for s, e in _DECIMAL.items() if e == exponent)
    return f"{nano}{suffix}"


def _exponent(value: Fraction) -> str:
    nano, exponent = _nano(value), -9
    if nano == 0:
        return "0"
    while nano % 1000 == 0:
        nano, exponent = nano // 1000, exponent + 3
    return f"{nano}e{exponent}" if exponent else str(nano)
