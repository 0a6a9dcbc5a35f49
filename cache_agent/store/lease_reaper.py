"""What an open store does by itself: leases of holders that are gone end, and leases lost with the ledger come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cache_agent.observability.events import Events
from cache_agent.store.ledger import Ledger
from cache_agent.store.values import Holder, Lease, Use


@dataclass(frozen=True, slots=True)
class LeaseReaper:
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

    def restore(self, users: Iterable[Use]) -> list[Lease]:
        """Leases for who uses a model and has none, after a ledger was lost."""
        restored = []
        with self.ledger.transaction():
            known = {(lease.model, lease.holder) for lease in self.ledger.leases()}
            for use in users:
                if (use.model, use.holder) in known or self.ledger.model(use.model) is None:
                    continue
                known.add((use.model, use.holder))
                name = use.lease or f"restored-{use.model.hex[:12]}-{use.holder.name}"
                lease = Lease(name, use.model, use.holder, self.clock())
                self.ledger.put_lease(lease)
                restored.append(lease)
        return restored
