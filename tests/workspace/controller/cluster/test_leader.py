"""One controller leads; another takes over when it is gone, and nobody compares clocks."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.access import Access
from modelimage.errors import Unreachable
from tests.servers.process import until
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.simulation import Cluster
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.leader import (
    LEASE_NAME,
    LEASE_SECONDS,
    RENEW_DEADLINE,
    RETRY_SECONDS,
    Leadership,
    LeadershipLost,
    Seen,
    claim,
)
from workspace.controller.main import ControllerOptions, run_controller
from workspace.controller.process.health_server import Liveness
from workspace.render.routing import SystemSettings

Json = dict[str, Any]


def lease(holder: str = "", version: str = "1") -> Json:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": LEASE_SECONDS, "leaseTransitions": 3}
    return {
        "metadata": {"name": LEASE_NAME, "resourceVersion": version},
        "spec": spec if holder else {},
    }


def test_a_free_lease_is_taken() -> None:
    taken = claim(lease(), me="a", seen=None, now=0, stamp="now")
    assert taken is not None
    assert taken["spec"]["holderIdentity"] == "a"
    assert taken["spec"]["acquireTime"] == taken["spec"]["renewTime"] == "now"


@given(st.floats(0, LEASE_SECONDS - 0.01), st.sampled_from(["1", "2"]))
def test_a_lease_that_is_renewed_or_fresh_is_anothers(waited: float, version: str) -> None:
    assert claim(lease("b", version), me="a", seen=Seen("1", 0.0), now=waited, stamp="now") is None


def test_a_lease_that_stood_still_for_its_duration_changes_hands() -> None:
    taken = claim(lease("b"), me="a", seen=Seen("1", 0.0), now=float(LEASE_SECONDS), stamp="now")
    assert taken is not None
    assert taken["spec"]["leaseTransitions"] == 4


def test_a_lease_never_seen_before_is_not_taken_whatever_its_times_say() -> None:
    assert claim(lease("b"), me="a", seen=None, now=1e9, stamp="now") is None


def test_our_own_lease_is_renewed_and_keeps_its_beginning() -> None:
    mine = lease("a")
    mine["spec"]["acquireTime"] = "then"
    renewed = claim(mine, me="a", seen=None, now=0, stamp="now")
    assert renewed is not None
    assert (renewed["spec"]["acquireTime"], renewed["spec"]["renewTime"]) == ("then", "now")
    assert renewed["spec"]["leaseTransitions"] == 3


def options(http: HttpApi, me: str) -> ControllerOptions:
    return ControllerOptions(
        me, SystemSettings(), Access(), http.connection(), Liveness(time.monotonic)
    )


def holder(cluster: Cluster) -> str | None:
    found = cluster.api.objects.get(("Lease", "weightyard", LEASE_NAME))
    return found["spec"].get("holderIdentity", "") if found else None


class Running:
    """One controller in this process."""

    def __init__(self, http: HttpApi, me: str) -> None:
        self.stop, self.led = asyncio.Event(), asyncio.Event()
        self.options = options(http, me)
        self.task = asyncio.create_task(
            run_controller(self.options, stop=self.stop, leading=self.led.set)
        )

    async def end(self) -> None:
        self.stop.set()
        await self.task


def test_a_controller_leads_and_gives_the_lease_up_when_told_to_stop() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        async with HttpApi(cluster.api) as http:
            first = Running(http, "a")
            await first.led.wait()
            assert holder(cluster) == "a"
            await first.end()
            assert holder(cluster) == ""
            # A released Lease is free at once, whatever its duration was.
            second = Running(http, "b")
            await second.led.wait()
            assert (
                cluster.api.get("Lease", "weightyard", LEASE_NAME)["spec"]["leaseTransitions"] == 1
            )
            await second.end()

    asyncio.run(scenario())


def test_a_standby_is_ready_but_does_not_lead_until_the_leader_stops() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        async with HttpApi(cluster.api) as http:
            first = Running(http, "a")
            await first.led.wait()
            second = Running(http, "b")
            liveness = second.options.liveness
            await until(lambda: liveness.problem() is None, what="readiness")
            asked = http.requests["GET"]
            await until(lambda: http.requests["GET"] > asked + 3, what="questions")
            assert not second.led.is_set()
            assert (holder(cluster), liveness.leads) == ("a", False)
            await first.end()
            await second.led.wait()
            await second.end()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_leader_whose_lease_was_taken_stops_acting_and_stands_by() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        async with HttpApi(cluster.api) as http:
            leader = Running(http, "a")
            await leader.led.wait()
            leader.led.clear()
            held_by = functools.partial(cluster.api.update, "Lease", "weightyard", LEASE_NAME)
            held_by(lambda d: d["spec"].update(holderIdentity="b"))
            await until(lambda: not leader.options.liveness.leads, what="a leader that gave up")
            assert not leader.led.is_set()
            held_by(lambda d: d["spec"].update(holderIdentity=""))
            await leader.led.wait()
            await leader.end()

    asyncio.run(scenario())


def test_a_server_that_restarts_costs_neither_the_process_nor_the_watches() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        async with HttpApi(cluster.api) as http:
            leader = Running(http, "a")
            await leader.led.wait()
            http.faults.extend([500, 503])
            http.watches.close()
            await until(lambda: not http.faults, what="renewals that fail")
            await until(lambda: leader.options.liveness.problem() is None, what="readiness")
            assert not leader.task.done()
            await leader.end()

    asyncio.run(scenario())


class Fast:
    """Time that passes only while somebody sleeps, and an API whose requests may hang."""

    def __init__(self) -> None:
        self.now = 0.0
        self.writes: list[float] = []
        self.down = False

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def get(self, *_: object) -> Json:
        if self.down:
            raise Unreachable("away")
        return lease("a") if self.writes else lease()

    async def replace(self, document: Json) -> Json:
        self.writes.append(self.now)
        return document


def test_a_leader_that_cannot_renew_stops_before_another_may_lead() -> None:
    async def scenario() -> None:
        fast = Fast()
        liveness = Liveness(lambda: fast.now)
        leadership = Leadership(
            cast(KubernetesApi, fast), namespace="n", me="a", clock=lambda: fast.now,
            stamp=lambda: "now", liveness=liveness, sleep=fast.sleep,
        )  # fmt: skip
        await leadership.acquire()
        keeping = asyncio.create_task(leadership.keep())
        await until(lambda: len(fast.writes) > 3, what="renewals")
        assert liveness.leads
        fast.down = True
        with pytest.raises(LeadershipLost):
            await keeping
        assert not liveness.leads
        assert fast.now - fast.writes[-1] <= RENEW_DEADLINE + RETRY_SECONDS < LEASE_SECONDS

    asyncio.run(scenario())


def test_a_lease_counts_from_the_request_for_it_however_late_its_answer_comes() -> None:
    class Late(Fast):
        async def replace(self, document: Json) -> Json:
            await super().replace(document)
            # Stored at once; of a write that nobody answers nothing is known.
            self.now += 8.0
            self.down = True
            return document

    async def scenario() -> None:
        late = Late()
        leadership = Leadership(
            cast(KubernetesApi, late), namespace="n", me="a", clock=lambda: late.now,
            stamp=lambda: "now", liveness=Liveness(lambda: late.now), sleep=late.sleep,
        )  # fmt: skip
        await leadership.acquire()
        with pytest.raises(LeadershipLost):
            await leadership.keep()
        assert late.now - late.writes[-1] < LEASE_SECONDS

    asyncio.run(scenario())


def test_a_controller_that_loses_its_lease_while_it_is_stopped_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def keep(_: Leadership) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LeadershipLost("another leads")

    monkeypatch.setattr(Leadership, "keep", keep)

    async def scenario() -> None:
        async with HttpApi(Cluster().api) as http:
            running = Running(http, "a")
            await running.led.wait()
            running.stop.set()
            await until(running.task.done, what="the end of the controller")

    asyncio.run(scenario())
