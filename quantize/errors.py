"""What can go wrong while quantizing, as finer names of the shared errors."""

from __future__ import annotations

from modelimage.errors import EngineFailed, GateFailed, InvalidCheckpoint, InvalidInput


class AlreadyQuantized(InvalidCheckpoint):
    """The checkpoint is quantized as published. It can be packaged as it is."""


class UnsupportedArchitecture(InvalidCheckpoint):
    """The model's layers can't be quantized without changing what they compute."""


class BrokenWeights(InvalidCheckpoint):
    """A weight holds NaN or infinity."""


class IncompatibleOptions(InvalidInput):
    """Scheme, format, engine or group size don't go together, or not with this checkpoint."""


class EngineMissing(EngineFailed):
    """The engine asked for isn't installed. The hint says the exact command that installs it."""


class QualityTooLow(GateFailed):
    """The quantized weights are worse than a threshold allows."""


def broken_weights(shard: str, module: str, row: int) -> BrokenWeights:
    """The error for a row of a matrix that isn't all finite numbers."""
    return BrokenWeights(
        f"{shard}: {module} holds NaN or infinity in row {row}",
        hint="The checkpoint is damaged or its training diverged: get another one.",
    )
