"""An agent's heartbeat, written to an API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cache_agent.api.heartbeat import HEARTBEAT_LABEL, RENEW_SECONDS, SILENT_SECONDS
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.prewarm.cluster.heartbeat import Heartbeat
from cache_agent.prewarm.cluster.node_owner import NodeOwner
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi

Json = dict[str, Any]
SPACE = "weightyard-system"


@dataclass
class Beating:
    """A heartbeat with clocks that a test moves, and what came of it."""

    server: FakeApi
    heartbeat: Heartbeat
    seconds: list[float]
    lapses: list[float]
    notes: list[str] = field(default_factory=list)

    def lease(self) -> Json:
        return self.server.get("Lease", SPACE, "agent-n1")

    async def after(self, seconds: float) -> None:
        self.seconds[0] += seconds
        await self.heartbeat.renew()


@asynccontextmanager
async def beating(*, refused: bool = False) -> AsyncIterator[Beating]:
    server, seconds = FakeApi(), [1000.0]
    lapses: list[float] = []
    notes: list[str] = []
    async with HttpApi(server) as http:
        http.refused = {"Lease": (403, "leases are forbidden")} if refused else {}
        connection = replace(http.connection(), namespace=SPACE)
        async with KubeClient(connection, role="agent") as api:
            heartbeat = Heartbeat(
                api, NodeOwner(api, "n1"), lambda: lapses.append(seconds[0]), lambda event, **_: notes.append(event),
                clock=lambda: seconds[0], monotonic=lambda: seconds[0],
            )  # fmt: skip
            yield Beating(server, heartbeat, seconds, lapses, notes)


def test_the_lease_is_the_nodes_and_is_renewed() -> None:
    async def test() -> None:
        async with beating() as at:
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}
            uid = at.server.create(node)["metadata"]["uid"]
            await at.heartbeat.renew()
            made = at.lease()
            assert made["metadata"]["labels"] == {HEARTBEAT_LABEL: "agent"}
            assert made["metadata"]["ownerReferences"][0]["uid"] == uid
            assert made["spec"]["holderIdentity"] == "n1"
            await at.after(RENEW_SECONDS)
            assert at.lease()["spec"]["renewTime"] > made["spec"]["renewTime"]
            assert at.lease()["metadata"]["labels"] == {HEARTBEAT_LABEL: "agent"}
            assert at.notes == []

    asyncio.run(test())


def test_a_lease_that_was_deleted_is_made_again() -> None:
    async def test() -> None:
        async with beating() as at:
            await at.heartbeat.renew()
            at.server.delete("Lease", SPACE, "agent-n1")
            await at.after(RENEW_SECONDS)
            assert "ownerReferences" not in at.lease()["metadata"]  # there is no such Node
            assert at.notes == []

    asyncio.run(test())


def test_a_node_that_is_registered_again_gets_its_lease_and_report_again() -> None:
    """With the Node the API server deleted both, in any order; without one nothing is made that nobody would delete."""

    async def test() -> None:
        async with beating() as at:
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}
            at.server.create(node)
            await at.heartbeat.renew()
            at.server.delete("Node", "", "n1")
            await at.after(RENEW_SECONDS)
            assert at.server.list("Lease") == []
            assert (at.notes, at.lapses) == (["heartbeat not written"], [])
            uid = at.server.create(node)["metadata"]["uid"]
            for _ in range(3):
                await at.after(RENEW_SECONDS)
            assert at.lease()["metadata"]["ownerReferences"][0]["uid"] == uid
            assert len(at.lapses) == 2

    asyncio.run(test())


def test_after_a_gap_the_report_is_written_again_and_only_then() -> None:
    async def test() -> None:
        async with beating() as at:
            await at.heartbeat.renew()
            for _ in range(3):
                await at.after(RENEW_SECONDS)
            assert at.lapses == []
            await at.after(SILENT_SECONDS - RENEW_SECONDS + 1)
            assert at.lapses == [at.seconds[0]]
            await at.after(RENEW_SECONDS)
            assert len(at.lapses) == 1

    asyncio.run(test())


def test_a_refused_renewal_is_told_and_ends_nothing() -> None:
    async def test() -> None:
        async with beating(refused=True) as at:
            await at.heartbeat.renew()
            assert at.notes == ["heartbeat not written"]
            assert at.lapses == []

    asyncio.run(test())
