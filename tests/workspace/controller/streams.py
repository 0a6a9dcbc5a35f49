"""What stands around a routed Workspace in tests: servers that stream, a Gateway that follows the route, load."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from cache_agent.api.kube.kube_client import KubeClient
from tests.servers.haproxy import HaProxy
from tests.workspace.controller import gateways
from tests.workspace.controller.fakeapi import FakeApi, Missing
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from workspace.controller.cluster.kube_api import RESOURCES
from workspace.controller.observation.objects import is_ready
from workspace.render import names

Json = dict[str, Any]
END = "data: [DONE]"
TOKENS = 10
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


@dataclass
class StandIn:
    """One server: its version, its running streams, and the Gateway's turn at which it was told to stop."""

    version: str
    running: int = 0
    stops_at: int | None = None
    cut: int = 0  # streams that it had when its pod was deleted


@dataclass
class Servers:
    """OpenAI-like servers, each at a loopback address of its own. As after a preStop hook, one that is to stop answers
    until the Gateway has looked again, and ends its streams.
    """

    turns: int = 0  # of the Gateway
    by_address: dict[str, StandIn] = field(default_factory=dict)
    port: int = 0
    # Real servers behind them, one for each version in order of appearance; without any, they make up their answers.
    real: tuple[str, ...] = ()

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", 0).start()  # noqa: S104 - all addresses of loopback
        self.port = runner.addresses[0][1]
        return runner

    def add(self, version: str) -> str:
        address = f"127.0.77.{len(self.by_address) + 1}"
        self.by_address[address] = StandIn(version)
        return address

    def stop(self, address: str) -> None:
        one = self.by_address[address]
        one.stops_at, one.cut = self.turns, one.running

    def _of(self, request: web.Request) -> StandIn:
        assert request.transport is not None
        return self.by_address[request.transport.get_extra_info("sockname")[0]]

    async def _metrics(self, request: web.Request) -> web.Response:
        """What a real server counted, and the requests of this pod alone: several may share one."""
        one = self._of(request)
        text = f"{_RUNNING} {one.running}\n{_WAITING} 0\n"
        if self.real:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self._real(one.version)}/metrics") as answer,
            ):
                page = await answer.text()
            own = (_RUNNING, _WAITING)
            text += "".join(
                each for each in page.splitlines(keepends=True) if not each.startswith(own)
            )
        return web.Response(text=text)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        one = self._of(request)
        if one.stops_at is not None and self.turns > one.stops_at + 1:
            return web.Response(status=503, text="stopped")
        one.running += 1
        response = web.StreamResponse(headers={"X-Version": one.version})
        try:
            async for part in self._answer(one.version, await request.read()):
                if not response.prepared:
                    await response.prepare(request)
                await response.write(part)
        except ConnectionResetError:
            pass  # a client that the test ended
        finally:
            one.running -= 1
        return response

    async def _answer(self, version: str, asked: bytes) -> AsyncIterator[bytes]:
        if not self.real:
            for number in range(TOKENS):
                yield f"data: {number}\n\n".encode()
                await asyncio.sleep(0.02)
            yield f"{END}\n\n".encode()
            return
        url = f"{self._real(version)}/v1/completions"
        headers, timeout = {"Content-Type": "application/json"}, aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url, data=asked, headers=headers) as answer,
        ):
            answer.raise_for_status()
            async for part in answer.content.iter_any():
                yield part

    def _real(self, version: str) -> str:
        versions = list(dict.fromkeys(each.version for each in self.by_address.values()))
        return self.real[versions.index(version)]


class ServedPods(Cluster):
    """A cluster whose servers stand for pods: a pod gets its server's address when it is ready."""

    servers_of_pods: Servers

    def _status(self, pod: Json, status: Json) -> None:
        labels = pod["metadata"].get("labels") or {}
        if labels.get(names.ROLE) == names.SERVER and is_ready({"status": status}):
            status = {**status, "podIP": self.servers_of_pods.add(labels[names.REVISION])}
        super()._status(pod, status)

    def watch_pods(self) -> None:
        def told(kind: str, document: Json) -> None:
            address = (document.get("status") or {}).get("podIP")
            if kind == "DELETED" and document["kind"] == "Pod" and address:
                self.servers_of_pods.stop(address)

        self.api.watchers.append(told)


async def follow(client: KubeClient, api: FakeApi, proxy: HaProxy, servers: Servers) -> None:
    """A Gateway: reads the route and the endpoints again and again, has HAProxy share so, and says that it did."""
    route_path = RESOURCES["HTTPRoute"].path(NAMESPACE, NAME)
    slices_path = RESOURCES["EndpointSlice"].path(NAMESPACE)
    while True:
        await asyncio.sleep(0.02)
        if ("HTTPRoute", NAMESPACE, NAME) not in api.objects:
            continue
        route = await client.get(route_path)
        slices = (await client.get(slices_path))["items"]
        await proxy.share(shares_of(route, slices, servers.port))
        servers.turns += 1
        try:
            gateways.answer(api, route)
        except Missing:
            continue


def shares_of(route: Json, slices: list[Json], port: int) -> dict[tuple[str, int], float]:
    """Each ready endpoint's share: its backend's weight, by the number of the backend's endpoints."""
    shares: dict[tuple[str, int], float] = {}
    for backend in route["spec"]["rules"][0]["backendRefs"]:
        ready = [
            endpoint["addresses"][0]
            for each in slices
            if each["metadata"]["labels"][gateways.SERVICE_NAME] == backend["name"]
            for endpoint in each["endpoints"]
            if endpoint["conditions"]["ready"]
        ]
        for address in ready:
            key = (address, port)
            shares[key] = shares.get(key, 0.0) + backend["weight"] / len(ready)
    return shares


@dataclass
class Load:
    """Clients that ask without a break. `answers` counts whole ones by version, `failures` tells of all others."""

    body: Json = field(default_factory=lambda: {"stream": True})
    events: int = TOKENS + 1  # the fewest of a whole answer
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    async def run(self, url: str, clients: int) -> None:
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._ask_on(session, url))

    async def _ask_on(self, session: aiohttp.ClientSession, url: str) -> None:
        while True:
            try:
                async with session.post(f"{url}/v1/completions", json=self.body) as answer:
                    text = await answer.text()
                    if (
                        answer.status == 200
                        and text.rstrip().endswith(END)
                        and text.count("data:") >= self.events
                    ):
                        self.answers[answer.headers["X-Version"]] += 1
                    else:
                        self.failures.append(f"{answer.status}: {text[-200:]}")
            except aiohttp.ClientError as error:
                self.failures.append(repr(error))
                await asyncio.sleep(0.05)
