"""How a volume was published: bytes and seconds by tier, from its pull or from where the model was already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cache_agent.api.publish_record import PublishRecord, TierBytes
from cache_agent.fetch.pull import Pull
from cache_agent.residency.pages import Resident, resident
from cache_agent.sources.source import Tier
from cache_agent.store.roots import Roots
from modelimage.digest import Digest
from modelimage.errors import WeightyardError

_CACHED: Final = "cached"


@dataclass(frozen=True, slots=True)
class Published:
    """A published volume. `pull`: what brought its model; None for one that was cached. Times are on one clock."""

    volume: str
    key: Digest
    pull: Pull | None
    at: float
    since: float

    @property
    def seconds(self) -> float:
        """Seconds since the volume was first asked for."""
        return max(0.0, self.at - self.since)


def publish_record(store: Roots, done: Published) -> PublishRecord:
    """The record of a published volume. Blocking: it asks which pages of a cached model are in memory."""
    tiers = _cached(store, done.key) if done.pull is None else _pulled(done.pull)
    order = [tier.value for tier in Tier]
    found = sorted(tiers, key=lambda each: order.index(each.tier))
    return PublishRecord(
        volume=done.volume, at=done.at, seconds=round(done.seconds, 3), tiers=tuple(found)
    )


def bytes_by_tier(store: Roots, done: Published) -> list[tuple[str, int]]:
    """What a volume's pull got from each tier; `cached` is what the node held before."""
    if done.pull is None:
        model = store.models.get(done.key)
        return [(_CACHED, model.size)] if model is not None else []
    parts = _pulled(done.pull)
    return [(_CACHED if each.tier == Tier.DISK.value else each.tier, each.bytes) for each in parts]


def _pulled(pull: Pull) -> list[TierBytes]:
    """What a pull fetched, and on the disk what was there before it."""
    snapshot = pull.snapshot()
    here = snapshot.reused + snapshot.resumed
    found = []
    for tier, size, seconds in snapshot.by_tier:
        # From another root of this node.
        if tier == Tier.DISK.value:
            here += size
        else:
            found.append(TierBytes(tier=tier, bytes=size, seconds=round(seconds, 3)))
    return [*found, *([TierBytes(tier=Tier.DISK.value, bytes=here)] if here else [])]


def _cached(store: Roots, key: Digest) -> list[TierBytes]:
    """What of a model is in memory, as far as the kernel tells, and what on the disk alone."""
    model = store.models.get(key)
    size = 0 if model is None else model.size
    try:
        pages = _resident(store, key)
    except WeightyardError:
        pages = Resident(0, 0, believable=False)
    in_memory = min(size, pages.resident) if pages.believable else 0
    parts = ((Tier.MEMORY, in_memory), (Tier.DISK, size - in_memory))
    return [TierBytes(tier=tier.value, bytes=count) for tier, count in parts if count]


def _resident(store: Roots, key: Digest) -> Resident:
    place = store.models.require_store(key)
    digests = [file.digest for file in place.ledger.model_files(key)]
    found = (resident(place.paths.file(digest)) for digest in digests)
    return sum(found, Resident(0, 0, believable=True))
