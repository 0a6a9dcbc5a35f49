"""Pre-warming: time from a change to its first byte on a node, and the cost of following a large cluster.

    .venv/bin/python -m benchmarks.prewarming --models 1000 --seconds 60

An agent process follows an API server with many CachedModels, all held by the node. First ten change, one after
another, to an image that it lacks: each is timed to its first byte. Then 100 change their priority each minute, and the
agent's CPU time is measured. Fails when a target is missed: a second to the first byte, 5 % of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from benchmarks.pull import cpu_of
from cache_agent.api.cached_model import PLURAL
from cache_agent.api.control_client import AgentClient
from cache_agent.api.kube_objects import API_VERSION
from cache_agent.store.paths import StorePaths
from tests.cache_agent.prewarm.documents import cached_model
from tests.cache_agent.servers.published import publish_model
from tests.servers.process import child_environment
from tests.servers.registry import DockerRegistry
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi

MOST_SECONDS: Final = 1.0
MOST_CPU: Final = 0.05
CHANGES_A_MINUTE: Final = 100
_IMAGES: Final = 20
_PATH: Final = f"/apis/{API_VERSION}/{PLURAL}"
_LONG: Final = 60.0

Json = dict[str, Any]


def kubeconfig(path: Path, url: str) -> Path:
    """Writes a kubeconfig for an API server without TLS."""
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                "clusters": [{"name": "c", "cluster": {"server": url.rstrip("/")}}],
                "users": [],
            }
        )
    )
    return path


@contextmanager
def running(work: Path, *options: str) -> Iterator[int]:
    """Runs an agent process; yields its pid."""
    root = work / "store"
    root.mkdir()
    command = [
        sys.executable, "-m", "weightyard.cli", "--json", "agent", "--root", str(root),
        "--prewarm-node", "n1", *options,
    ]  # fmt: skip
    with (work / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, stderr=log, env=child_environment(work))
    try:
        yield agent.pid
    finally:
        agent.terminate()
        agent.wait(30)


async def share_of_a_core(
    session: aiohttp.ClientSession, pid: int, models: int, seconds: float
) -> float:
    """The share of a core that a process uses while specs change."""
    before, started = cpu_of(pid), time.monotonic()
    for number in range(int(seconds * CHANGES_A_MINUTE / 60)):
        due = started + number * 60 / CHANGES_A_MINUTE
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        spec = {"priority": number % 100}
        await change(session, f"m{number % models}", spec)
    return (cpu_of(pid) - before) / (time.monotonic() - started)


class Subject:
    """A running agent, queried through its socket in threads: the API server that it uses runs in this loop."""

    def __init__(self, root: Path) -> None:
        self._client = AgentClient(StorePaths(root).socket)
        self._log = root.parent / "agent.log"

    async def wanted(self) -> dict[str, Any]:
        """Its reports by CachedModel."""
        status = (await asyncio.to_thread(self._client.status)).status
        return {each.name: each for each in status.desired}

    async def until(self, condition: Any, step: float) -> float:
        """Seconds until a condition on the reports holds. Raises SystemExit when it doesn't."""
        last: Exception | None = None
        started = time.perf_counter()
        while time.perf_counter() - started < _LONG:
            try:
                if condition(await self.wanted()):
                    return time.perf_counter() - started
            except Exception as error:  # noqa: BLE001 - it may not respond yet
                last = error
            else:
                last = None
            await asyncio.sleep(step)
        raise SystemExit(f"the agent didn't get there: {last}\n{self._log.read_text()[-2000:]}")


async def change(session: aiohttp.ClientSession, name: str, spec: Json) -> None:
    kind = {"Content-Type": "application/merge-patch+json"}
    async with session.patch(f"{_PATH}/{name}", json={"spec": spec}, headers=kind) as answer:
        answer.raise_for_status()


async def measure(models: int, seconds: float, work: Path) -> tuple[list[float], float]:
    """Seconds to the first byte of each change that needs a pull, and the agent's share of a core."""
    with ExitStack() as stack:
        registry = stack.enter_context(DockerRegistry())
        images = [
            publish_model(f"{registry.host}/wanted/m{n}:v1", seed=n).image for n in range(_IMAGES)
        ]
        server = FakeApi()
        server.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
        known = _IMAGES // 2
        for number in range(models):
            server.create(cached_model(f"m{number}", images[number % known]))
        async with HttpApi(server, plain=True) as http:
            url = http.url
            with running(work, "--prewarm-kubeconfig", str(kubeconfig(work / "k", url))) as pid:
                subject = Subject(work / "store")
                await subject.until(
                    lambda w: len(w) == models and all(e.state == "Ready" for e in w.values()), 0.5
                )
                async with aiohttp.ClientSession(url) as session:
                    fresh = range(known, _IMAGES)
                    latencies = [await first_byte(session, subject, n, images[n]) for n in fresh]
                    share = await share_of_a_core(session, pid, models, seconds)
        return latencies, share


async def first_byte(
    session: aiohttp.ClientSession, subject: Subject, number: int, image: str
) -> float:
    """Seconds from a change in the API server to the first byte on the node."""
    name = f"m{number}"
    await change(session, name, {"image": image})

    def came(wanted: dict[str, Any]) -> bool:
        each = wanted[name]
        return bool(each.observed_generation == 2 and (each.bytes_done or each.state == "Ready"))

    return await subject.until(came, 0.01)


def main() -> int:
    """Measures, prints, and returns 1 when a bound isn't met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wy-") as work:
        latencies, share = asyncio.run(measure(options.models, options.seconds, Path(work)))
    worst, middle = max(latencies), sorted(latencies)[len(latencies) // 2]
    print(f"change to first byte: median {middle:.2f} s, worst {worst:.2f} s (at most {MOST_SECONDS} s)")  # fmt: skip
    print(
        f"{options.models} CachedModels, {CHANGES_A_MINUTE} changes a minute: "
        f"{100 * share:.1f} % of a core (at most {100 * MOST_CPU:.0f} %)"
    )
    return 0 if worst <= MOST_SECONDS and share <= MOST_CPU else 1


if __name__ == "__main__":
    sys.exit(main())
