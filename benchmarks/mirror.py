"""The registry mirror of a warm agent beside the servers that it replaces: docker-registry and nginx.

    pull         `ctr images pull` through the mirror, and of the same image from docker-registry on loopback
    blobs        one weight layer through the mirror, and as a file from nginx with sendfile, by curl
    connections  keep-alive connections held open at the mirror, and the agent's memory with them

Every round runs each contender once, in alternating order; the first round warms up. Prints medians and ratios (above
1: the mirror is faster) and the servers' CPU seconds per GB. Needs root, containerd, docker-registry, nginx (Debian:
nginx-light), curl. Fails when a ratio is below 0.95 (pull) or 0.9 (blobs), or memory at 150 MB or more.

    .venv/bin/python -m benchmarks.mirror --gigabytes 1 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pull import cpu_of
from cache_agent.servers.mirror.containerd import configure
from tests.cache_agent.servers.agent_process import AgentProcess
from tests.cache_agent.servers.http_client import fetch
from tests.servers.containerd import Containerd
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess, child_environment, program, wait_until
from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint

_LEAST = {"pull: docker-registry / mirror": 0.95, "blob: nginx / mirror": 0.9}
_MOST_MEGABYTES = 150
_NGINX = """\
user root; daemon off; pid {work}/nginx.pid; error_log stderr; worker_processes 1;
events {{ worker_connections 4096; }}
http {{ access_log off; sendfile on; tcp_nopush on; server {{ listen 127.0.0.1:{port}; root {root}; }} }}
"""


@dataclass(frozen=True)
class Contender:
    """One way to get the same bytes: the function to run, and the server processes whose CPU time it uses."""

    run: Callable[[], None]
    servers: Sequence[int]


@contextmanager
def nginx(work: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Runs nginx over a directory; yields HOST:PORT and the process id of its worker."""
    port = free_port()
    config = work / "nginx.conf"
    config.write_text(_NGINX.format(work=work, port=port, root=root))
    command = [program("nginx"), "-p", str(work), "-e", "stderr", "-c", str(config)]
    environment = child_environment(work)
    with ServerProcess(command, log=work / "nginx.log", environment=environment) as process:
        host = f"127.0.0.1:{port}"
        process.wait_for(lambda: _listens(host), what="listen")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        yield host, int(wait_until(lambda: children.read_text().split(), what="worker")[0])


def _listens(host: str) -> bool:
    try:
        fetch(host, "/")
    except OSError:
        return False
    return True


def compare(contenders: Mapping[str, Contender], rounds: int, size: int) -> dict[str, float]:
    """Median seconds by name; also prints the CPU time per GB."""
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in sorted(contenders, reverse=number % 2 == 0):
            each = contenders[name]
            before, began = sum(map(cpu_of, each.servers)), time.perf_counter()
            each.run()
            if number:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(sum(map(cpu_of, each.servers)) - before)
    medians = {name: statistics.median(times) for name, times in wall.items()}
    for name, seconds in medians.items():
        spent = statistics.median(cpu[name]) / size * 1e9
        print(
            f"  {name:12} {seconds:7.2f} s  {size / seconds / 1e9:6.2f} GB/s  server {spent:5.2f} CPU s/GB"
        )
    return medians


def pull(
    agent: AgentProcess, registry: DockerRegistry, containerd: Containerd, image: str, work: Path
) -> dict[str, Contender]:
    """`ctr images pull`, directly and through the mirror of hosts.toml."""
    configure(work / "certs.d", [registry.host], f"http://{agent.servers['mirror']}")

    def pulled(hosts: Path | None) -> Callable[[], None]:
        def run() -> None:
            containerd.pull(image, hosts_dir=hosts)
            containerd.remove(image)

        return run

    daemon = containerd._process.pid
    return {
        "registry": Contender(pulled(None), [registry._process.pid, daemon]),
        "mirror": Contender(pulled(work / "certs.d"), [agent.pid, daemon]),
    }


def blobs(
    agent: AgentProcess,
    registry: DockerRegistry,
    repository: str,
    digest: str,
    fixed: tuple[str, int],
) -> dict[str, Contender]:
    """The same layer from nginx and through the mirror."""

    def curl(url: str) -> Callable[[], None]:
        command = [program("curl"), "-sf", "-o", "/dev/null", url]

        def run() -> None:
            subprocess.run(command, check=True)

        return run

    host, worker = fixed
    path = registry.blob_path(digest)
    served = f"http://{agent.servers['mirror']}/v2/{repository}/blobs/{digest}?ns={registry.host}"
    return {
        "nginx": Contender(curl(f"http://{host}/{path.parent.name}/data"), [worker]),
        "mirror": Contender(curl(served), [agent.pid]),
    }


def connections(agent: AgentProcess, count: int) -> float:
    """The agent's resident megabytes with `count` keep-alive connections, each of which got one response."""
    host, _, port = agent.servers["mirror"].rpartition(":")
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            client.sendall(b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        status = Path(f"/proc/{agent.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # This process holds the clients' end of every connection.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wy-")))
        registry = stack.enter_context(DockerRegistry())
        containerd = stack.enter_context(Containerd())
        image = f"{registry.host}/bench/model:v1"
        size = _build(work, image, options.gigabytes)
        agent = AgentProcess(work / "store", WEIGHTYARD_SERVERS__MIRROR="127.0.0.1:0")
        agent.start()
        stack.callback(agent.stop)
        held = connections(agent, options.connections)
        _weightyard("pull", image, "--root", str(work / "store"))
        digest, layer = _largest_layer(registry, "bench/model")
        root = registry.blob_path(digest).parent.parent
        fixed = stack.enter_context(nginx(work, root))
        print("ctr images pull")
        pulls = compare(pull(agent, registry, containerd, image, work), options.rounds, size)
        print("one layer")
        served = compare(
            blobs(agent, registry, "bench/model", digest, fixed), options.rounds, layer
        )
        ratios = {
            "pull: docker-registry / mirror": pulls["registry"] / pulls["mirror"],
            "blob: nginx / mirror": served["nginx"] / served["mirror"],
        }
        found = {**ratios, f"MB resident with {options.connections} connections": held}
        for name, value in found.items():
            print(f"{name}: {value:.2f}")
        if options.json:
            options.json.write_text(json.dumps(found, indent=2))
    missed = [name for name, least in _LEAST.items() if ratios[name] < least]
    if missed or held >= _MOST_MEGABYTES:
        raise SystemExit(f"missed: {', '.join(missed) or 'memory'}")


def _build(work: Path, image: str, gigabytes: float) -> int:
    """Builds and pushes an image; returns the bytes of its checkpoint."""
    total = int(gigabytes * 1e9)
    checkpoint = synthetic_checkpoint(
        work / "checkpoint", total_bytes=total, shard_bytes=total // 2
    )
    _weightyard("build", str(checkpoint), "--to", image)
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    for path in checkpoint.iterdir():
        path.unlink()
    return size


def _weightyard(*arguments: str) -> None:
    command = [sys.executable, "-m", "weightyard.cli", "--quiet", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _largest_layer(registry: DockerRegistry, repository: str) -> tuple[str, int]:
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    url = f"/v2/{repository}/manifests/v1-modelpack"
    layers = json.loads(fetch(registry.host, url, headers=accept).body)["layers"]
    found = max(layers, key=lambda layer: layer["size"])
    return found["digest"], found["size"]


if __name__ == "__main__":
    main()
