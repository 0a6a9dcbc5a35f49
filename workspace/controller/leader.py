"""Who acts: one controller at a time, by a Lease that the leader renews and others take over once it has run out.

`claim` is the pure rule. The clocks of two machines are never compared: a standby measures with its own how long
a Lease stayed as it was (as client-go's leader election does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from modelimage.errors import NotFound, Unreachable, WeightyardError
from workspace.controller.api import KubernetesApi
from workspace.controller.health import Liveness

Json = dict[str, Any]

LEASE_NAME: Final = "weightyard-controller"
LEASE_SECONDS: Final = 15
RENEW_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """A Lease's last known version, and when (on our own clock) it was first seen so."""

    version: str
    since: float


def claim(lease: Json, *, me: str, seen: Seen | None, now: float, stamp: str) -> Json | None:
    """The Lease with us as its holder; None while another holds it. `stamp` is RFC 3339 with microseconds."""
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    if holder and holder != me:
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
    """Keeps trying for the Lease, then keeps renewing it; `run` ends when it is lost."""

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
        """Until leadership that was had is lost. Raises Unreachable then: the caller must stop acting at once."""
        renewed = self._clock()
        while True:
            held = await self._try()
            if held is not None and self._liveness is not None:
                self._liveness.beat(leads=held)
            if held:
                renewed = self._clock()
                self.leads.set()
            elif self.leads.is_set() and (held is False or self._clock() > renewed + LEASE_SECONDS):
                self.leads.clear()
                raise Unreachable("leadership was lost", hint="Start again; another one leads now.")
            await asyncio.sleep(RENEW_SECONDS)

    async def _try(self) -> bool | None:
        """Whether we hold the Lease after this attempt; None when the API server couldn't tell."""
        try:
            lease = await self._read()
            self._look(lease)
            mine = claim(
                lease, me=self._me, seen=self._seen, now=self._clock(), stamp=self._stamp()
            )
            if mine is None:
                return False
            if "resourceVersion" in lease["metadata"]:
                await self._api.replace(mine)
            else:
                await self._api.create(mine)
        except WeightyardError:
            return None  # a conflict, or no answer: the next attempt tells
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
