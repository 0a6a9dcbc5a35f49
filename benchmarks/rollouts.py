"""The controller while many Workspaces roll out: CPU and memory of its process, which compares all of them.

The API server is the tests' own, over HTTPS; the servers of both versions are stand-ins that show pages as large as
vLLM's, with counts that grow. The controller is the real program in its own process. Of one Workspace in a simulated
cluster the objects are made, and all are copies of those.

    python -m benchmarks.rollouts [--workspaces 500] [--seconds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from cache_agent.api.kube_objects import timestamp
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from workspace.render import names

Json = dict[str, Any]
INTERVAL = 15  # seconds between two comparisons of a Workspace, the default
LIMIT_MB = 300.0
REQUESTS_A_SECOND = 3.0  # requests that each stand-in counts
_KINDS = (
    "ControllerRevision", "Deployment", "Service", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Pod",
)  # fmt: skip
_BOUNDS = [0.001 * 1.6**number for number in range(22)]
_FILLING = "".join(
    f'vllm:something_else_total{{engine="0",model_name="m",number="{number}"}} {number}.0\n'
    for number in range(600)
)


def main() -> int:
    """Starts the servers and the controller, measures, and prints one line per number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspaces", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    ours, theirs = Pipe()
    pages_ours, pages_theirs = Pipe()
    # In processes of their own: their memory and CPU time aren't the controller's.
    pages = Process(target=_serve_pages, args=(pages_theirs,))
    pages.start()
    api = Process(target=_serve_api, args=(theirs, given.workspaces, pages_ours.recv()))
    api.start()
    try:
        with tempfile.TemporaryDirectory() as directory:
            return _measure(ours, pages_ours, Path(directory), given.workspaces, given.seconds)
    finally:
        for each in (api, pages):
            each.terminate()
            each.join()


def _measure(
    api: Connection, pages: Connection, directory: Path, workspaces: int, seconds: int
) -> int:
    url, token, authority = api.recv()
    config = directory / "kubeconfig"
    config.write_text(kubeconfig(url, token, authority))
    command = [sys.executable, "-m", "weightyard", "controller", "--log-level", "warning"]
    environment = os.environ | {"KUBECONFIG": str(config)}
    with subprocess.Popen(command, env=environment) as controller:
        try:
            # Until each was compared, and the first comparisons are spread over the interval.
            _until(lambda: _ask(pages, "pages") > 2 * workspaces)
            read, used, began = _ask(pages, "pages"), cpu(controller.pid), time.monotonic()
            writes = _ask(api, "writes")
            time.sleep(seconds)
            passed = time.monotonic() - began
            share = (cpu(controller.pid) - used) / passed
            read = _ask(pages, "pages") - read
            peak = peak_mb(controller.pid)
            print(f"Workspaces in rollout: {_ask(api, 'comparing')} of {workspaces}")
            print(
                f"metrics pages read: {read / passed:.0f} a second, writes: {_ask(api, 'writes') - writes}"
            )
            print(f"CPU: {share * 60:.1f} s a minute, {share:.0%} of a core")
            print(f"memory at its peak: {peak:.0f} MB of {LIMIT_MB:.0f} MB")
            return int(share >= 1 or peak >= LIMIT_MB)
        finally:
            controller.terminate()


def _serve_pages(pipe: Connection) -> None:
    asyncio.run(_answer_pages(pipe))


async def _answer_pages(pipe: Connection) -> None:
    began, count = time.monotonic(), 0

    async def page(request: web.Request) -> web.Response:
        nonlocal count
        count += 1
        return web.Response(text=_page(int((time.monotonic() - began) * REQUESTS_A_SECOND) + 100))

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    pipe.send(runner.addresses[0][1])
    while True:
        await asyncio.to_thread(pipe.recv)
        pipe.send(count)


def _page(requests: int) -> str:
    """A metrics page as long as vLLM's, after so many requests that took all times alike."""
    lines = [_FILLING, f'vllm:request_success_total{{finished_reason="stop"}} {requests}.0']
    for name in ("time_to_first_token", "request_time_per_output_token", "request_queue_time"):
        for number, bound in enumerate(_BOUNDS, 1):
            counted = requests * number / len(_BOUNDS)
            lines.append(
                f'vllm:{name}_seconds_bucket{{engine="0",le="{bound:g}",model_name="m"}} {counted}'
            )
        lines.append(
            f'vllm:{name}_seconds_bucket{{engine="0",le="+Inf",model_name="m"}} {requests}.0'
        )
    for status, share in (("2xx", requests), ("5xx", 0)):
        lines.append(
            f'http_requests_total{{handler="/v1/completions",method="POST",status="{status}"}} {share}.0'
        )
    return "\n".join([*lines, ""])


def _serve_api(pipe: Connection, workspaces: int, port: int) -> None:
    asyncio.run(_answer_api(pipe, _cluster(workspaces, port)))


async def _answer_api(pipe: Connection, api: FakeApi) -> None:
    async with HttpApi(api) as http:
        pipe.send((http.url, http.callers.token, http.authority))
        while True:
            if await asyncio.to_thread(pipe.recv) == "writes":
                pipe.send(http.writes())
            else:
                found = api.list("Workspace")
                reasons = [each["status"].get("rollout", {}).get("reason") for each in found]
                pipe.send(reasons.count("Comparing"))


def _cluster(workspaces: int, port: int) -> FakeApi:
    """Copies of one Workspace whose new version has half of the servers and is compared for hours."""
    cluster = Cluster()
    for number in range(8):
        cluster.add_node(f"n{number}", gpus=8)
    steps = [{"weight": 50}, {"analysis": {"seconds": 86_400}}]
    analysis = {"intervalSeconds": INTERVAL}
    cluster.create_workspace(
        replicas=1, rollout={"strategy": "canary", "steps": steps, "analysis": analysis}
    )
    cluster.now = timestamp(time.time())
    cluster.settle()
    cluster.change_spec(model={"image": "registry.example/team/llama:v2"})
    cluster.settle()
    workspace = cluster.api.get("Workspace", NAMESPACE, NAME)
    objects = [each for kind in _KINDS for each in cluster.api.list(kind, NAMESPACE)]
    made = FakeApi()
    for node in cluster.api.list("Node"):
        made.create(node)
    for number in range(workspaces):
        namespace = f"ns{number}"
        created = made.create(moved(workspace, namespace))
        uid = created["metadata"]["uid"]
        for each in objects:
            text = json.dumps(each).replace(workspace["metadata"]["uid"], uid)
            made.create(_served(moved(json.loads(text), namespace), port))
    return made


def moved(document: Json, namespace: str) -> Json:
    return {**document, "metadata": {**document["metadata"], "namespace": namespace}}


def _served(document: Json, port: int) -> Json:
    """A pod has the stand-in's address; everything else is as it was."""
    if document["kind"] == "Pod":
        document["status"]["podIP"] = "127.0.0.1"
        for container in document["spec"]["containers"]:
            for each in container.get("ports", ()):
                if each["name"] == names.PORT_NAME:
                    each["containerPort"] = port
    return document


def kubeconfig(url: str, token: str, authority: bytes) -> str:
    server = {"server": url, "certificate-authority-data": b64encode(authority).decode()}
    return yaml.safe_dump(
        {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": server}], "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }
    )  # fmt: skip


def cpu(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """The most memory that a process has held at a time."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) * 1024 / 1e6


def _until(condition: Any) -> None:
    while not condition():
        time.sleep(0.5)


def _ask(pipe: Connection, what: str) -> int:
    pipe.send(what)
    return int(pipe.recv())


if __name__ == "__main__":
    sys.exit(main())
