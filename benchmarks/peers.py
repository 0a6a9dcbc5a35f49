"""N cold nodes pulling concurrently from an origin with limited bandwidth, with and without peers, in one run.

The nodes are real agents on this machine. The origin is a docker-registry behind a relay with a fixed total bandwidth.
Printed for each N: seconds until the last node has the model, the multiple of one node's time, and the copies that the
registry sent according to its access log.

    .venv/bin/python -m benchmarks.peers --megabytes 512 --rate 50

All nodes share one machine's processors, unlike a cluster's nodes: `CPU` shows how busy they were.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cache_agent.sources.throttle import Throttle
from modelimage.record import CHUNK_SIZE
from modelimage.reference import RegistryReference, parse_image
from tests.cache_agent.daemon.test_agent import push
from tests.cache_agent.images import simple_image
from tests.cache_agent.peers.cluster import cluster
from tests.servers.registry import DockerRegistry

_PIECE = 128 << 10


@dataclass(frozen=True)
class Run:
    """One start of `nodes` cold nodes: seconds, copies sent by the origin, and busy processors (of all)."""

    nodes: int
    peers: bool
    seconds: float
    copies: float
    cpu: float


class Line:
    """Relays to a local port; all responses share `rate` bytes per second."""

    def __init__(self, port: int, rate: float) -> None:
        self._target = port
        self._throttle = Throttle(rate, time.monotonic)
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._server.accept()[0]
                origin = socket.create_connection(("127.0.0.1", self._target))
                for source, sink, slow in ((client, origin, False), (origin, client, True)):
                    threading.Thread(
                        target=self._pump, args=(source, sink, slow), daemon=True
                    ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(_PIECE):
                if slow:
                    time.sleep(self._throttle.take(len(data)))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def line(port: int, rate: float) -> Iterator[Line]:
    """A Line that is closed with the context."""
    made = Line(port, rate)
    try:
        yield made
    finally:
        made.close()


def sent(registry: DockerRegistry, repository: str) -> int:
    """Bytes of blobs that the registry has sent."""
    accesses = registry.accesses(f"/v2/{repository}/blobs/")
    return sum(access.sent for access in accesses if access.method == "GET")


def measure(registry: DockerRegistry, image: str, size: int, *, nodes: int, peers: bool) -> Run:
    """Starts cold nodes, lets all pull concurrently, and stops them."""
    reference = parse_image(image)
    assert isinstance(reference, RegistryReference)
    order = ["peer", "registry"] if peers else ["registry"]
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as base:
        with cluster(Path(base), nodes, settings={"tiers": {"order": order}}) as agents:
            agents.start(*range(nodes))
            os.sync()
            before, started = sent(registry, reference.repository), time.perf_counter()
            busy = _busy()
            agents.pull_everywhere(image)
            seconds = time.perf_counter() - started
            cpu = (_busy() - busy) / seconds
        copies = (sent(registry, reference.repository) - before) / size
    return Run(nodes, peers, seconds, copies, cpu)


def _busy() -> float:
    """Seconds that this machine's processors have been busy."""
    fields = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def report(runs: list[Run]) -> None:
    """Prints a table, and the time of N nodes relative to one."""
    alone = next(run.seconds for run in runs if run.nodes == 1 and not run.peers)
    print(f"\n{'nodes':>5} {'peers':>6} {'seconds':>8} {'of one':>7} {'copies':>7} {'CPU':>5}")
    for run in runs:
        print(
            f"{run.nodes:5} {'yes' if run.peers else 'no':>6} {run.seconds:8.2f} "
            f"{run.seconds / alone:7.2f} {run.copies:7.3f} {run.cpu:5.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rate", type=float, default=50.0, help="the origin's line, MB/s")
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--max-copies", type=float, default=1.1, help="fail above, with peers")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    half = options.megabytes * 1_000_000 // 2 // CHUNK_SIZE * CHUNK_SIZE
    with DockerRegistry() as registry, line(registry.port, options.rate * 1e6) as origin:
        model, record, _ = simple_image(weights=[half, half + 1000])
        reference = parse_image(f"{registry.host}/bench/peers:v1")
        assert isinstance(reference, RegistryReference)
        push(model, reference)
        # Pushed: freed before the nodes need the memory.
        del model
        image = f"127.0.0.1:{origin.port}/bench/peers:v1"
        runs = []
        for nodes in sorted({1, *options.nodes}):
            for peers in (False, True):
                run = measure(registry, image, record.size, nodes=nodes, peers=peers)
                runs.append(run)
                print(json.dumps(asdict(run)), flush=True)
    report(runs)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=2))
    return 1 if any(run.peers and run.copies > options.max_copies for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
