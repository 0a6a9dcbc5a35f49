"""Takes a snapshot of this node's models and space, for the planner. Only reads the store."""

from __future__ import annotations

from typing import Final

from cache_agent.api.node_cache import MOST_VICTIMS
from cache_agent.prewarm.values import CachedModelState, Inventory
from cache_agent.store.policy import PIN, Candidate, evictable, next_victims
from cache_agent.store.roots import Roots
from cache_agent.store.store import Store
from modelimage.digest import Digest

# A pod leases its model when kubelet retries, which may be this long after the pull ended.
FRESH_SECONDS: Final = 150.0


def take_inventory(roots: Roots, now: float) -> Inventory:
    """Take a snapshot of all roots. Raises DiskFailed.

    A model is stored whole on one root, so space is freed on one root only: the one that could have the most. Models
    on other roots aren't evictable.
    """
    views = [(store, *store.space.survey()) for store in roots.stores]
    chosen, view, offered = max(views, key=lambda each: each[1].headroom + evictable(each[2]))
    held: dict[Digest, CachedModelState] = {}
    for store, _, candidates in views:
        held |= _holdings(candidates, store, chosen, now)
    return Inventory(
        models={model.key: model for model in roots.models.all()},
        held=held,
        # The headroom is negative where the disk has less free than `min_free`.
        free=max(0, view.headroom),
        total=sum(each.own + max(0, each.headroom) for _, each, _ in views),
        used=sum(each.own for _, each, _ in views),
        evictable=sum(evictable(candidates) for _, _, candidates in views),
        next_victims=next_victims(offered, most=MOST_VICTIMS, now=now),
    )


def _holdings(
    candidates: list[Candidate], store: Store, chosen: Store, now: float
) -> dict[Digest, CachedModelState]:
    return {
        each.key: CachedModelState(
            each,
            evictable=store is chosen,
            pinned=PIN in each.held_by,
            leased=any(holder != PIN for holder in each.held_by),
            fresh=now - each.last_used < FRESH_SECONDS,
        )
        for each in candidates
    }
