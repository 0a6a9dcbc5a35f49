"""Errors of quantization, as subclasses of the shared errors."""

from __future__ import annotations

from modelimage.errors import EngineFailed, GateFailed, InvalidCheckpoint, InvalidInput


class AlreadyQuantized(InvalidCheckpoint):
    """The published checkpoint is already quantized. It can be packaged unchanged."""


class UnsupportedArchitecture(InvalidCheckpoint):
    """The model's layers can't be quantized without changing what they compute."""


class BrokenWeights(InvalidCheckpoint):
    """A weight is NaN or infinite."""


class IncompatibleOptions(InvalidInput):
    """Scheme, format, engine or group size don't fit together, or don't fit this checkpoint."""


class EngineMissing(EngineFailed):
    """The requested engine isn't installed. The hint gives the exact command that installs it."""


class QualityTooLow(GateFailed):
    """The quantized weights miss a quality threshold."""


def broken_weights(shard: str, module: str, row: int) -> BrokenWeights:
    """The error for a row of a matrix with non-finite values."""
    return BrokenWeights(
        f"{shard}: {module} holds NaN or infinity in row {row}",
        hint="The checkpoint is damaged or its training diverged: get another one.",
    )
