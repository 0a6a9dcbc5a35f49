"""Documents of the cache's side: what people want, what agents report, nodes as they join."""

from __future__ import annotations

from typing import Any

from cache_agent.api.kube_objects import API_VERSION
from cache_agent.api.shared_names import STARTUP_TAINT
from modelimage.digest import Digest

Json = dict[str, Any]
NOW = "2026-01-31T22:00:00Z"


def key_of(image: str) -> Digest:
    return Digest.of(image.encode())


def cached_model(name: str, image: str = "registry.example/m:1", **spec: Any) -> Json:
    return {
        "apiVersion": API_VERSION, "kind": "CachedModel", "metadata": {"name": name},
        "spec": {"image": image, **spec},
    }  # fmt: skip


def node(name: str, *, starting: bool = False, **labels: str) -> Json:
    taints = [{"key": "other", "value": "x", "effect": "NoSchedule"}]
    taints += [{"key": STARTUP_TAINT, "effect": "NoSchedule"}] if starting else []
    ready = [{"type": "Ready", "status": "True"}]
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints}, "status": {"conditions": ready, "allocatable": {"nvidia.com/gpu": "1"}},
    }  # fmt: skip


def report(name: str, state: str = "Ready", *, generation: int = 1, **more: Any) -> Json:
    """An agent's word on one CachedModel."""
    return {"name": name, "observedGeneration": generation, "state": state, **more}


def held(image: str, state: str = "Ready") -> Json:
    """A model that is whole on a node."""
    return {
        "key": str(key_of(image)), "state": state, "image": image, "variant": "bf16", "size": 100,
    }  # fmt: skip


def node_cache(
    name: str, *, desired: tuple[Json, ...] = (), models: tuple[Json, ...] = (), **conditions: str
) -> Json:
    """What an agent wrote; its conditions are True unless said otherwise."""
    said = dict.fromkeys(("Ready", "Synced", "PinnedReady", "SpaceSufficient"), "True") | conditions
    return {
        "apiVersion": API_VERSION, "kind": "NodeCache", "metadata": {"name": name}, "spec": {"node": name},
        "status": {
            "conditions": [
                {"type": t, "status": s, "reason": "Told", "message": "", "lastTransitionTime": NOW}
                for t, s in said.items()
            ],
            "desired": list(desired),
            "models": list(models),
        },
    }  # fmt: skip
