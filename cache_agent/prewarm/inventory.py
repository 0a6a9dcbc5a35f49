"""Takes a snapshot of this node's models and space, for the planner. Only reads the store."""

from __future__ import annotations

from collections import Counter
from typing import Final

from cache_agent.prewarm.values import CachedModelState, Inventory
from cache_agent.store.policy import Candidate, evictable, expected_use
from cache_agent.store.roots import Roots
from cache_agent.store.store import Store
from modelimage.digest import Digest

# A pod leases its model when kubelet retries, which may be this long after the pull ended.
FRESH_SECONDS: Final = 150.0


def take_inventory(roots: Roots, now: float) -> Inventory:
    """Take a snapshot of all roots. Raises DiskFailed.

    A model is stored whole on one root, so space is freed on one root only: the one that could have the most. Models
    on other roots count as freeing nothing.
    """
    views = [(store, store.space(), store.candidates()) for store in roots.stores]
    chosen, view, _ = max(views, key=lambda each: each[1].headroom + evictable(each[2]))
    held: dict[Digest, CachedModelState] = {}
    for store, _, candidates in views:
        held |= _holdings(candidates, store, chosen, now)
    return Inventory(
        models={model.key: model for model in roots.models()},
        held=held,
        free=max(0, view.headroom),
        total=sum(each.own + max(0, each.headroom) for _, each, _ in views),
        used=sum(each.own for _, each, _ in views),
        evictable=sum(evictable(candidates) for _, _, candidates in views),
    )


def _holdings(
    candidates: list[Candidate], store: Store, chosen: Store, now: float
) -> dict[Digest, CachedModelState]:
    # A file shared by two models is freed only with the last of them, so it counts for neither.
    shared = Counter(digest for each in candidates for digest in each.files)
    return {
        each.key: CachedModelState(
            key=each.key,
            size=each.size,
            freed=sum(size for digest, size in each.files.items() if shared[digest] == 1)
            if store is chosen
            else 0,
            pinned="a pin" in each.held_by,
            leased=any(holder != "a pin" for holder in each.held_by),
            fresh=now - each.last_used < FRESH_SECONDS,
            value=expected_use(each, now),
        )
        for each in candidates
    }
