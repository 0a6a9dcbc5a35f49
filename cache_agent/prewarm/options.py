"""What a keeper is told: how much at once, how long to wait, and who reads images for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from modelimage.reference import ImageReference
from modelimage.repository import ImageReader

# Nothing tells of models that other ways brought or took, so the store is looked at now and then, in seconds.
LOOK_SECONDS: Final = 30.0
# How long a label's removal is waited for before a model is deleted: leases, not labels, are what guarantee.
LABEL_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class ReconcilerOptions:
    """`fetches` at once; `bandwidth` caps them all together, in bytes per second (0: no cap)."""

    fetches: int = 2
    bandwidth: int = 0
    look_seconds: float = LOOK_SECONDS
    label_seconds: float = LABEL_SECONDS


class Credentials(Protocol):
    """How a wish's image is read."""

    async def reader(self, image: ImageReference, secret: str | None) -> ImageReader | None:
        """With a pull secret's credentials; None: as the node reads. Raises NotFound, AccessDenied, InvalidInput."""
