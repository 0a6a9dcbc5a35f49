"""Lease maintenance of an open store: ends leases of dead holders, restores leases lost with the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cache_agent.observability.events import Events
from cache_agent.store.ledger import Ledger
from cache_agent.store.values import Holder, Lease, Use


@dataclass(frozen=True, slots=True)
class LeaseReaper:
    """Ends and restores leases. `is_gone` must return True only when the holder is certainly gone."""

    ledger: Ledger
    events: Events
    is_gone: Callable[[Holder], bool]
    clock: Callable[[], float]

    def expire(self) -> list[Lease]:
        """End the leases whose holders are gone. Leases never expire by time alone."""
        gone = [lease for lease in self.ledger.leases() if self.is_gone(lease.holder)]
        for lease in gone:
            # It may have been released meanwhile: report only leases that this call ended.
            if self.ledger.drop_lease(lease.id):
                self.events.expired(lease.id, str(lease.holder))
        return gone

    def restore(self, users: Iterable[Use]) -> list[Lease]:
        """Create the missing leases of current users, after a ledger was lost."""
        restored = []
        with self.ledger.transaction():
            known = {(lease.model, lease.holder) for lease in self.ledger.leases()}
            for use in users:
                # Idempotent: a holder that is found twice gets one lease.
                if (use.model, use.holder) in known or self.ledger.model(use.model) is None:
                    continue
                known.add((use.model, use.holder))
                name = use.lease or f"restored-{use.model.hex[:12]}-{use.holder.name}"
                lease = Lease(name, use.model, use.holder, self.clock())
                self.ledger.put_lease(lease)
                restored.append(lease)
        return restored
