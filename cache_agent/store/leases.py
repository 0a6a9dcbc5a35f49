"""The leases of one open store: takes, ends and expires them, and restores those that were lost with the ledger."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cache_agent.observability.events import Events, LeaseExpired
from cache_agent.store.group_commit import GroupCommit
from cache_agent.store.ledger import Ledger
from cache_agent.store.values import Holder, Lease, Use


class StoreLeases:
    """The leases of one store. Thread-safe. Raises DiskFailed, NoSpace.

    `is_gone` must return True only when the holder is certainly gone; `clock` returns seconds since the epoch.
    """

    def __init__(
        self,
        ledger: Ledger,
        events: Events,
        *,
        is_gone: Callable[[Holder], bool],
        clock: Callable[[], float],
    ) -> None:
        self._ledger, self._events = ledger, events
        self._is_gone, self._clock = is_gone, clock
        self._commits = GroupCommit(ledger)

    def all(self) -> list[Lease]:
        """All leases, by id."""
        return self._ledger.leases()

    def get(self, lease_id: str) -> Lease | None:
        return self._ledger.lease(lease_id)

    def take_all(self, uses: Sequence[Use]) -> list[Lease | None]:
        """Lease models durably, in one commit, before they are mounted. Idempotent by id.

        None for a model that isn't stored.
        """
        return self._commits.run(lambda: [self._take(use) for use in uses])

    def _take(self, use: Use) -> Lease | None:
        lease = Lease(use.lease or uuid.uuid4().hex, use.model, use.holder, self._clock(), use.pod)
        # The kubelet repeats its requests: the same id must not count as another use.
        known = self._ledger.lease(lease.id)
        if known is not None and known.model == use.model:
            return self._named(known, use.pod)
        # Within one change of the ledger: a model can't be evicted between the check for its row and the lease.
        if not self._ledger.note_use(use.model, lease.since):
            return None
        self._ledger.put_lease(lease)
        return lease

    def _named(self, lease: Lease, pod: str) -> Lease:
        """The lease with its pod's name, which one from before a loss or an upgrade lacks."""
        if not pod or lease.pod == pod:
            return lease
        named = replace(lease, pod=pod)
        self._ledger.put_lease(named)
        return named

    def release_all(self, lease_ids: Sequence[str]) -> list[bool]:
        """End leases in one commit; returns for each whether it existed."""
        return self._commits.run(lambda: [self._ledger.drop_lease(each) for each in lease_ids])

    def expire(self) -> list[Lease]:
        """End the leases whose holders are gone; returns them. Leases never expire by time alone."""
        gone = [lease for lease in self.all() if self._is_gone(lease.holder)]
        # It may have been released meanwhile: only the leases that this call ends count.
        ended = [lease for lease in gone if self._ledger.drop_lease(lease.id)]
        for lease in ended:
            self._events.emit(LeaseExpired(lease.id, str(lease.holder)))
        return ended

    def restore(self, users: Iterable[Use]) -> list[Lease]:
        """Create the missing leases of current users, after a ledger was lost; returns them."""
        restored = []
        with self._ledger.transaction():
            known = {(lease.model, lease.holder) for lease in self.all()}
            for use in users:
                # Idempotent: a holder that is found twice gets one lease.
                if (use.model, use.holder) in known or not self._ledger.has_model(use.model):
                    continue
                known.add((use.model, use.holder))
                name = use.lease or f"restored-{use.model.hex[:12]}-{use.holder.name}"
                lease = Lease(name, use.model, use.holder, self._clock())
                self._ledger.put_lease(lease)
                restored.append(lease)
        return restored
