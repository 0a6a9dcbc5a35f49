"""One controller leads; another takes over when it is gone, and nobody compares clocks."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.access import Access
from modelimage.errors import Unreachable
from tests.servers.process import until
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.simulation import Cluster
from workspace.controller.leader import LEASE_NAME, LEASE_SECONDS, Seen, claim
from workspace.controller.main import ControllerOptions, run_controller
from workspace.render.kubernetes import SystemSettings

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
    return ControllerOptions(me, SystemSettings(), Access(), http.connection)


def holder(cluster: Cluster) -> str | None:
    found = cluster.api.objects.get(("Lease", "weightyard", LEASE_NAME))
    return found["spec"]["holderIdentity"] if found else None


def test_a_controller_starts_leads_and_stops_when_told() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        async with HttpApi(cluster.api) as http:
            stop, led = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(
                run_controller(options(http, "a"), stop=stop, leading=led.set)
            )
            await led.wait()
            assert holder(cluster) == "a"
            stop.set()
            await task

    asyncio.run(scenario())


def test_a_standby_does_not_lead_while_another_does() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        async with HttpApi(cluster.api) as http:
            stop, led = asyncio.Event(), asyncio.Event()
            first = asyncio.create_task(
                run_controller(options(http, "a"), stop=stop, leading=led.set)
            )
            await led.wait()
            asked = http.requests.get("GET", 0)
            second_led = asyncio.Event()
            second = asyncio.create_task(
                run_controller(options(http, "b"), stop=stop, leading=second_led.set)
            )
            await until(lambda: http.requests["GET"] > asked + 12, what="questions")
            assert not second_led.is_set()
            assert holder(cluster) == "a"
            stop.set()
            await asyncio.gather(first, second)

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_leader_whose_lease_was_taken_stops_acting() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        async with HttpApi(cluster.api) as http:
            stop, led = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(
                run_controller(options(http, "a"), stop=stop, leading=led.set)
            )
            await led.wait()
            cluster.api.update(
                "Lease", "weightyard", LEASE_NAME, lambda d: d["spec"].update(holderIdentity="b")
            )
            with pytest.raises(Unreachable, match="leadership was lost"):
                await task
            with contextlib.suppress(Unreachable):
                await task

    asyncio.run(scenario())
