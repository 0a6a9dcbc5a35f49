"""Leader election: one controller acts at a time. The leader renews a Lease; others take it over when it expires.

`claim` is the pure rule. Clocks of two machines are never compared: a standby measures on its own clock how long a
Lease stayed unchanged (like client-go's leader election).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from modelimage.errors import NotFound, Unreachable, WeightyardError
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.process.health_server import Liveness
from workspace.controller.process.log_events import about

Json = dict[str, Any]

logger = logging.getLogger(__name__)

LEASE_NAME: Final = "weightyard-controller"
# client-go's values. The leader gives up before a standby may take over, whatever their clocks say.
LEASE_SECONDS: Final = 15
RENEW_DEADLINE: Final = 10.0
RETRY_SECONDS: Final = 2.0


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
    # A Lease that was released has no holder, and taking it is a transition all the same.
    transitions = spec.get("leaseTransitions", 0) + (1 if taken and spec else 0)
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


class LeadershipLost(Unreachable):
    """Another controller leads, or may lead soon: everything that writes must stop."""


class Leadership:
    """Acquires the Lease, renews it, and releases it at the end."""

    def __init__(
        self, api: KubernetesApi, *, namespace: str, me: str, clock: Callable[[], float],
        stamp: Callable[[], str], liveness: Liveness, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._api = api
        self._namespace = namespace
        self._me = me
        self._clock = clock
        self._stamp = stamp
        self._liveness = liveness
        self._sleep = sleep
        self._seen: Seen | None = None
        # When the last write that we know of was begun: the server may have stored it at any time since.
        self._renewed = 0.0

    async def acquire(self) -> None:
        """Waits until we hold the Lease."""
        while not await self._renew(RENEW_DEADLINE):
            await self._sleep(RETRY_SECONDS)

    async def keep(self) -> None:
        """Renews the Lease. Raises LeadershipLost when another holds it, or could not be renewed in time."""
        while True:
            await self._sleep(RETRY_SECONDS)
            left = self._renewed + RENEW_DEADLINE - self._clock()
            held = await self._renew(left) if left > 0 else None
            late = self._clock() >= self._renewed + RENEW_DEADLINE
            if held is False or (held is None and late):
                self._liveness.leads = False
                raise LeadershipLost("leadership was lost: another controller may lead now")

    async def release(self) -> None:
        """Gives the Lease up, so that a standby leads at once instead of after its expiry. Never raises our errors."""
        try:
            # The Lease expires by itself: the process's end must not wait for an API server that is away.
            async with asyncio.timeout(RETRY_SECONDS):
                lease = await self._read()
                if (lease.get("spec") or {}).get("holderIdentity") == self._me:
                    # The shortest that is valid (coordination/v1 refuses 0), as client-go writes it.
                    freed = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                    # A Conflict means that another controller has it already.
                    await self._api.replace({**lease, "spec": freed})
        except (WeightyardError, TimeoutError) as error:
            logger.warning(
                "the Lease expires by itself, it could not be released: %s",
                error,
                extra=about("lease not released"),
            )

    async def _renew(self, seconds: float) -> bool | None:
        """Whether we hold the Lease after one attempt; None when it was inconclusive or took too long."""
        began = self._clock()
        try:
            async with asyncio.timeout(seconds):
                held = await self._try()
        except TimeoutError:
            # The write may have arrived: only the next read tells.
            return None
        if held is not None:
            self._liveness.beat(leads=held)
        if held:
            self._renewed = began
        return held

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
