"""The reconciler's options, and its interface to pull credentials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from modelimage.reference import ImageReference
from modelimage.repository import ImageReader

# Seconds between two inventories: the safety net for changes of the store that raise no event.
LOOK_SECONDS: Final = 30.0
# Seconds to wait for a label's removal before its model is deleted. Bounded, because leases are what protects pods.
LABEL_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class ReconcilerOptions:
    """At most `fetches` concurrent fetches; `bandwidth` caps their sum, in bytes per second (0: no cap)."""

    fetches: int = 2
    bandwidth: int = 0
    look_seconds: float = LOOK_SECONDS
    label_seconds: float = LABEL_SECONDS


class Credentials(Protocol):
    """Opens images with the pull secrets of desired models."""

    async def reader(self, image: ImageReference, secret: str | None) -> ImageReader | None:
        """A reader with a pull secret's credentials; None: use the node's own.

        Raises NotFound, AccessDenied, InvalidInput.
        """
