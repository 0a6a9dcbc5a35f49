"""The demonstration's picture: bars in the terminal, for bytes that moved and for the variants. Pure text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weightyard.console import format_table
from weightyard.text import format_bytes, format_duration

BAR: Final = 24  # characters of the longest bar
_FULL: Final = "█"
_PARTS: Final = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True)
class FetchBar:
    """One way of getting the model's files: the bytes that moved, the seconds, and the digests that were checked."""

    name: str
    bytes: int
    seconds: float
    checks: int


@dataclass(frozen=True, slots=True)
class VariantBar:
    """A variant: its bytes, what of its quality was measured, and where it runs. `quality` None: not measured."""

    name: str
    bytes: int
    quality: tuple[float, float] | None  # perplexity ratio, top-1 agreement
    note: str = ""


def bar(value: float, most: float) -> str:
    """A bar for a value from 0 to `most`, to an eighth of a character. What isn't 0 is seen."""
    eighths = round(8 * BAR * value / most) if most > 0 else 0
    whole, part = divmod(max(eighths, 1 if value > 0 else 0), 8)
    return (_FULL * whole + (_PARTS[part] if part else "")).ljust(BAR)


def fetches_chart(fetches: Sequence[FetchBar]) -> str:
    """Bars of the bytes that moved."""
    most = max((each.bytes for each in fetches), default=0)
    rows = [
        (
            each.name,
            bar(each.bytes, most),
            format_bytes(each.bytes),
            format_duration(each.seconds),
            each.checks or "none",
        )
        for each in fetches
    ]
    return format_table(["the same model", "bytes moved", "", "time", "digests checked"], rows)


def variants_chart(variants: Sequence[VariantBar]) -> str:
    """Bars of the variants' bytes, beside their measured quality."""
    most = max((each.bytes for each in variants), default=0)
    rows = [
        (each.name, bar(each.bytes, most), format_bytes(each.bytes), *_quality(each), each.note)
        for each in variants
    ]
    columns = ["variant", "bytes in memory", "", "perplexity", "same next word", ""]
    return format_table(columns, rows)


def _quality(variant: VariantBar) -> tuple[str, str]:
    if variant.quality is None:
        return "not measured", "-"
    ratio, agreement = variant.quality
    return f"x {ratio:.3f}", f"{100 * agreement:.0f}%"
