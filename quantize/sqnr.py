"""Signal-to-quantization-noise ratio, per matrix and for the whole checkpoint, and the floors that catch bugs.

Measured on the weights alone, in the pass that writes them. It says nothing about the model's quality, but immediately
reveals a wrong scale, axis or packing. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from quantize.errors import QualityTooLow
from quantize.schemes import Scheme

# Gaussian weights give about 19 dB in 4 bits with groups of 128, and above 30 dB in 8 bits per row. Below these floors
# either the code is wrong or the matrix shouldn't be quantized.
DEFAULT_FLOOR: Final[Mapping[Scheme, float]] = {
    Scheme.INT4: 8.0,
    Scheme.INT8: 15.0,
    Scheme.INT8_W8A16: 15.0,
}
# Stands for no noise at all: a matrix of zeros, or one that the format represents exactly.
EXACT: Final = 200.0


@dataclass(frozen=True, slots=True)
class Energies:
    """Sums of squares: of the weights, and of the quantization error."""

    signal: float = 0.0
    error: float = 0.0

    def __add__(self, other: Energies) -> Energies:
        return Energies(self.signal + other.signal, self.error + other.error)

    @property
    def decibels(self) -> float:
        """10 log10(signal / error), at most EXACT; minus infinity when either isn't finite."""
        if not math.isfinite(self.signal + self.error):
            return -math.inf
        if self.error <= 0 or self.signal <= 0:
            return EXACT
        return min(EXACT, 10 * math.log10(self.signal / self.error))


@dataclass(frozen=True, slots=True)
class SqnrSummary:
    """The ratio of every matrix in dB by module name; `mean` is over all weights together."""

    mean: float
    worst: float
    worst_module: str
    matrices: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "meanDb": round(self.mean, 2),
            "minDb": round(self.worst, 2),
            "minModule": self.worst_module,
            "matrices": {name: round(value, 2) for name, value in self.matrices.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SqnrSummary:
        return cls(
            float(document["meanDb"]),
            float(document["minDb"]),
            str(document["minModule"]),
            {str(name): float(value) for name, value in document["matrices"].items()},
        )


def summarize(energies: Mapping[str, Energies]) -> SqnrSummary:
    """Summarize a checkpoint with at least one matrix."""
    ratios = {name: energies[name].decibels for name in sorted(energies)}
    worst = min(ratios, key=lambda name: ratios[name])
    # Rounded once, at the end: the sum doesn't depend on the order in which threads finish.
    total = Energies(
        math.fsum(each.signal for each in energies.values()),
        math.fsum(each.error for each in energies.values()),
    )
    return SqnrSummary(total.decibels, ratios[worst], worst, ratios)


def check_floor(summary: SqnrSummary, floor: float) -> None:
    """Raises QualityTooLow naming the worst matrix when it is below `floor` dB."""
    if summary.worst < floor:
        raise QualityTooLow(
            f"{summary.worst_module} has a signal-to-noise ratio of {summary.worst:.1f} dB, below "
            f"the floor of {floor:.1f} dB",
            hint="Choose another scheme or a smaller group, or lower --min-sqnr if you accept it.",
        )
