"""Publishing a cached model to many pods concurrently, like kubelet: a real agent, mounter and mounts.

Each round publishes to `--pods` pods concurrently over gRPC and unpublishes them. The image is public and named by tag,
so each publish verifies that the tag still refers to this model. Prints the time from request to response: median, p99,
longest; the CPU time of agent and mounter per publish and unpublish; and the copied bytes of the model. Fails when p99
is 50 ms or more. Needs root.

kubelet's directory is in memory, or below `--kubelet`. On ext4 creating a directory takes longer the more were removed
in the last minutes: 0.1 ms, one after another, after a thousand pods have come and gone within seconds, as here and on
no real node. That is a cost of the filesystem and not of the driver, and delays fifty pods by 5 to 10 ms.

    .venv/bin/python -m benchmarks.publish --pods 50 --rounds 20
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.pull import cpu_of
from tests.cache_agent.mounter.mounters import NamespacedMounter, volume
from tests.cache_agent.servers.agent_process import AgentProcess, csi_settings
from tests.cache_agent.servers.csi_spec import message
from tests.cache_agent.servers.kubelet import Kubelet, publish_request
from tests.cache_agent.servers.published import publish_model
from tests.servers.registry import DockerRegistry

_NODE = "/csi.v1.Node"
_P99_MS = 50.0
_MEMORY = Path("/dev/shm")  # noqa: S108


class Pods:
    """Calls the driver concurrently for pods `pod-0` and following."""

    def __init__(self, kubelet: Kubelet, image: str, count: int) -> None:
        self._kubelet, self._image, self._count = kubelet, image, count
        self.socket = f"unix:{kubelet.directory}/plugins/cache.weightyard.dev/csi.sock"

    async def round(self, channel: grpc.aio.Channel) -> list[float]:
        """Publishes to each pod, then unpublishes; returns the seconds of each publish."""
        publish: Any = channel.unary_unary(f"{_NODE}/NodePublishVolume", request_serializer=bytes)
        unpublish: Any = channel.unary_unary(
            f"{_NODE}/NodeUnpublishVolume", request_serializer=bytes
        )
        requests = [self._publish(f"pod-{number}") for number in range(self._count)]
        seconds = await asyncio.gather(*(_timed(publish, each) for each in requests))
        await asyncio.gather(*(unpublish(self._unpublish(f"pod-{n}")) for n in range(self._count)))
        return list(seconds)

    def _publish(self, pod: str) -> bytes:
        target = volume(self._kubelet.directory, pod)
        fields = publish_request(pod, target, self._image)
        return bytes(message("NodePublishVolumeRequest")(**fields).SerializeToString())

    def _unpublish(self, pod: str) -> bytes:
        target = volume(self._kubelet.directory, pod)
        made = message("NodeUnpublishVolumeRequest")(volume_id=f"csi-{pod}", target_path=target)
        return bytes(made.SerializeToString())


async def _timed(call: Any, request: bytes) -> float:
    began = time.perf_counter()
    await call(request, timeout=60)
    return time.perf_counter() - began


async def rounds(pods: Pods, count: int) -> list[list[float]]:
    """Seconds of every publish by round, after a warm-up round."""
    async with grpc.aio.insecure_channel(pods.socket) as channel:
        await pods.round(channel)
        gc.collect()
        gc.freeze()  # kubelet, which this process replaces, has no garbage collection pauses of 30 ms
        return [await pods.round(channel) for _ in range(count)]


def report(seconds: list[list[float]], cpu: float) -> dict[str, float]:
    every = sorted(each for one in seconds for each in one)
    found = {
        "publishes": len(every),
        "p50_ms": statistics.median(every) * 1e3,
        "p99_ms": every[min(len(every) - 1, int(len(every) * 0.99))] * 1e3,
        "longest_ms": every[-1] * 1e3,
        "cpu_ms": cpu / len(every) * 1e3,
    }
    print("  ".join(f"{name} {value:.1f}" for name, value in found.items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kubelet", type=Path, default=_MEMORY, help="where its directory is made")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    with ExitStack() as stack:
        work, pods = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wy-", dir=place)))
            for place in (None, options.kubelet)
        )
        registry = stack.enter_context(DockerRegistry())
        kubelet = stack.enter_context(Kubelet(pods / "kubelet"))
        mounter = stack.enter_context(NamespacedMounter(work / "store", kubelet.directory))
        agent = AgentProcess(work / "store", **csi_settings(kubelet.directory, mounter.socket))
        agent.start()
        stack.callback(agent.stop)
        image = f"{registry.host}/bench/model:v1"
        publish_model(image, seed=1)
        target = kubelet.publish("first", image)
        pids = (agent.pid, int(mounter.proc.name))
        before, stored = sum(map(cpu_of, pids)), _bytes(work / "store/files")
        seconds = asyncio.run(rounds(Pods(kubelet, image, options.pods), options.rounds))
        found = report(seconds, sum(map(cpu_of, pids)) - before)
        weights = mounter.inside(target) / "model.safetensors"
        inodes = {
            path.stat().st_ino for path in (work / "store/files").rglob("*") if path.is_file()
        }
        assert weights.stat().st_ino in inodes
        assert _bytes(work / "store/files") == stored
        print(
            "copied: 0 bytes (the volume shows the store's own inodes, and the store didn't grow)"
        )
        if options.json:
            options.json.write_text(json.dumps(found, indent=2))
    if found["p99_ms"] >= _P99_MS:
        raise SystemExit(f"missed: p99 below {_P99_MS:.0f} ms")


def _bytes(directory: Path) -> int:
    found = (os.lstat(path) for path in directory.rglob("*"))
    return sum(each.st_blocks * 512 for each in found)


if __name__ == "__main__":
    main()
