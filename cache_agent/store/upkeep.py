"""What an open store does by itself: leases of holders that are gone end, and leases lost with the ledger come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cache_agent.events import Events
from cache_agent.store.ledger import Ledger
from cache_agent.store.values import Holder, HolderKind, Lease
from modelimage.digest import Digest


@dataclass(frozen=True, slots=True)
class LeaseKeeper:
    """Keeps leases true to who is there. `is_gone` answers for certain or not at all."""

    ledger: Ledger
    events: Events
    is_gone: Callable[[Holder], bool]
    clock: Callable[[], float]

    def expire(self) -> list[Lease]:
        """End the leases whose holders are gone; time alone ends none."""
        gone = [lease for lease in self.ledger.leases() if self.is_gone(lease.holder)]
        for lease in gone:
            if self.ledger.drop_lease(lease.id):
                self.events.expired(lease.id, str(lease.holder))
        return gone

    def restore(self, mounted: Iterable[tuple[str, str]]) -> list[Lease]:
        """Leases for the (model key, pod UID) pairs that are mounted and have none, after a ledger was lost."""
        restored = []
        with self.ledger.transaction():
            known = {(lease.model.hex, lease.holder.name) for lease in self.ledger.leases()}
            for key, pod in mounted:
                if (key, pod) in known or self.ledger.model(Digest(key)) is None:
                    continue
                holder = Holder(HolderKind.POD, pod)
                lease = Lease(f"restored-{key[:12]}-{pod}", Digest(key), holder, self.clock())
                self.ledger.put_lease(lease)
                restored.append(lease)
        return restored
