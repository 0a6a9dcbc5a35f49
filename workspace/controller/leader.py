"""Leader election: one controller acts at a time. The leader renews a Lease; others take it over when it expires.

`claim` is the pure rule. Clocks of two machines are never compared: a standby measures on its own clock how long a
Lease stayed unchanged (like client-go's leader election).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from modelimage.errors import NotFound, Unreachable, WeightyardError
from workspace.controller.health_server import Liveness
from workspace.controller.kube_api import KubernetesApi

Json = dict[str, Any]

LEASE_NAME: Final = "weightyard-controller"
LEASE_SECONDS: Final = 15
RENEW_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """A Lease's last seen version, and when it was first seen, on our own clock."""

    version: str
    since: float


def claim(lease: Json, *, me: str, seen: Seen | None, now: float, stamp: str) -> Json | None:
    """The Lease with us as holder; None while another holds it. `stamp` is RFC 3339 with microseconds."""
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    if holder and holder != me:
        # The holder's renewTime is on its own clock, so expiry is measured from the last change we
        # saw.
        unchanged = seen is not None and seen.version == lease["metadata"].get("resourceVersion")
        seconds = spec.get("leaseDurationSeconds", LEASE_SECONDS)
        if not unchanged or seen is None or now < seen.since + seconds:
            return None
    taken = holder != me
    transitions = spec.get("leaseTransitions", 0) + (1 if taken and holder else 0)
    return {
        **lease,
        "spec": {
            **spec,
            "holderIdentity": me,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": stamp if taken else spec.get("acquireTime", stamp),
            "renewTime": stamp,
            "leaseTransitions": transitions,
        },
    }


class Leadership:
    """Acquires the Lease, then renews it; `run` ends when it is lost."""

    def __init__(
        self, api: KubernetesApi, *, namespace: str, me: str, clock: Callable[[], float],
        stamp: Callable[[], str], liveness: Liveness | None = None,
    ) -> None:  # fmt: skip
        self._api = api
        self._namespace = namespace
        self._me = me
        self._clock = clock
        self._stamp = stamp
        self._liveness = liveness
        self._seen: Seen | None = None
        self.leads = asyncio.Event()

    async def run(self) -> None:
        """Runs until leadership is lost. Then raises Unreachable: the caller must stop acting immediately."""
        renewed = self._clock()
        while True:
            held = await self._try()
            if held is not None and self._liveness is not None:
                self._liveness.beat(leads=held)
            if held:
                renewed = self._clock()
                self.leads.set()
            # Another holder ends leadership immediately; an unreachable API server only once the
            # Lease may have expired, since nobody can take over before.
            elif self.leads.is_set() and (held is False or self._clock() > renewed + LEASE_SECONDS):
                self.leads.clear()
                raise Unreachable("leadership was lost", hint="Start again; another one leads now.")
            await asyncio.sleep(RENEW_SECONDS)

    async def _try(self) -> bool | None:
        """Whether we hold the Lease after this attempt; None when the attempt was inconclusive."""
        try:
            lease = await self._read()
            self._look(lease)
            mine = claim(
                lease, me=self._me, seen=self._seen, now=self._clock(), stamp=self._stamp()
            )
            if mine is None:
                return False
            # Fails with Conflict when another controller changed the Lease since the read.
            if "resourceVersion" in lease["metadata"]:
                await self._api.replace(mine)
            else:
                await self._api.create(mine)
        except WeightyardError:
            return None  # a conflict or no response: the next attempt decides
        return True

    async def _read(self) -> Json:
        try:
            return await self._api.get("Lease", self._namespace, LEASE_NAME)
        except NotFound:
            metadata = {"name": LEASE_NAME, "namespace": self._namespace}
            return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}

    def _look(self, lease: Json) -> None:
        version = str(lease["metadata"].get("resourceVersion", ""))
        if self._seen is None or self._seen.version != version:
            self._seen = Seen(version, self._clock())
