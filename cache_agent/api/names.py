"""Names that the agent and the controller must agree on for ever."""

from __future__ import annotations

from typing import Final

from modelimage.digest import Digest

DOMAIN: Final = "weightyard.dev"
CACHE_DOMAIN: Final = f"cache.{DOMAIN}"

READY: Final = "ready"  # the value of a model's label
# A node starts with it, and the controller takes it away once the node's pinned models are verified.
STARTUP_TAINT: Final = f"{CACHE_DOMAIN}/starting"


MODEL_LABELS: Final = f"{CACHE_DOMAIN}/m."  # what the labels of models begin with


def node_label(key: Digest) -> str:
    """The label that a node carries while it holds a model, with the value `ready`."""
    return f"{MODEL_LABELS}{key.hex[:12]}"
