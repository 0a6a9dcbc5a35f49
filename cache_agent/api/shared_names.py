"""Names that are shared by the agent and the controller, and must never change."""

from __future__ import annotations

from typing import Final

from modelimage.digest import Digest

DOMAIN: Final = "weightyard.dev"
CACHE_DOMAIN: Final = f"cache.{DOMAIN}"
CSI_DRIVER: Final = CACHE_DOMAIN  # the CSIDriver object, and kubelet's directory for the sockets

READY: Final = "ready"  # the value of a model's label
# A node starts with this taint. The controller removes it once the node's pinned models are verified.
STARTUP_TAINT: Final = f"{CACHE_DOMAIN}/starting"

MODEL_LABELS: Final = f"{CACHE_DOMAIN}/m."  # the prefix of model labels


def node_label(key: Digest) -> str:
    """The node label, with the value `ready`, for a model that the node holds."""
    # Cut, because a label's name has at most 63 characters and a digest has 64 digits.
    return f"{MODEL_LABELS}{key.hex[:12]}"
