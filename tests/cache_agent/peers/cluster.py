"""Real agents as processes that are each other's peers, on loopback addresses of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cache_agent.api.control_client import AgentClient
from cache_agent.api.wire import PullBody, PullDone
from cache_agent.net.sockets import connect
from cache_agent.store.paths import StorePaths
from tests.cache_agent.nodes import UNDISTURBED, findings
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess, child_environment

BUSY = 100.0  # seconds: a node on a busy machine answers late
KEY = "a key that only these tests' nodes share, and nobody else"


def addresses(count: int) -> list[str]:
    """Free addresses that no other tests use: on loopback networks named after this process."""
    pid = os.getpid()
    hosts = [f"127.{100 + (pid >> 8) % 100}.{pid % 256}.{n + 1}" for n in range(count)]
    return [f"{host}:{free_port(host)}" for host in hosts]


@dataclass
class ClusterNode:
    """One agent. `done` is what its pull ended with."""

    address: str
    root: Path
    process: ServerProcess
    done: list[PullDone] = field(default_factory=list)

    @property
    def client(self) -> AgentClient:
        client = AgentClient.from_socket(StorePaths(self.root).socket)
        assert client is not None, self.process.log_text()
        return client

    def pull(self, image: str) -> PullDone:
        """Pull and wait."""
        *_, last = self.client.pull(PullBody(image=image))
        assert isinstance(last, PullDone)
        self.done.append(last)
        return last

    def counted(self, name: str) -> float:
        """The sum of a counter over its labels."""
        connection = connect(StorePaths(self.root).socket, None)
        with closing(connection), connection.makefile("rwb") as stream:
            stream.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            stream.flush()
            lines = stream.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@dataclass
class Cluster:
    """Agents on `names`; `settings` are added to each one's, `peers` to each one's peers.

    `docker_config`: the config.json whose credentials they have.
    """

    base: Path
    names: Sequence[str]
    stack: ExitStack
    peers: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    nodes: list[ClusterNode] = field(default_factory=list)
    docker_config: str = ""

    def start(self, *numbers: int, **peers: Any) -> list[ClusterNode]:
        """Start agents side by side; they answer when this returns."""
        started = [self._start(number, peers) for number in numbers]
        for node in started:
            path = StorePaths(node.root).socket
            node.process.wait_for(
                lambda path=path: AgentClient.from_socket(path),  # type: ignore[misc]
                what="answer",
            )
        self.nodes += started
        return started

    def pull_everywhere(self, image: str) -> list[PullDone]:
        """Pull on every node at once."""
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            return list(threads.map(lambda node: node.pull(image), self.nodes))

    def _start(self, number: int, peers: Mapping[str, Any]) -> ClusterNode:
        name = self.names[number]
        home = self.base / f"n{number}"
        home.mkdir(parents=True, exist_ok=True)
        if self.docker_config:
            (home / "docker").mkdir(exist_ok=True)
            (home / "docker" / "config.json").write_text(self.docker_config)
        (home / "config.yaml").write_text(yaml.safe_dump(self._settings(name, peers)))
        command = [sys.executable, "-m", "weightyard.cli", "--json", "agent"]
        command += ["--root", str(home / "store"), "--config", str(home / "config.yaml")]
        log = home / f"log-{len(list(home.glob('log-*')))}"
        environment = child_environment(home, DOCKER_CONFIG=str(home / "docker"), **UNDISTURBED)
        process = self.stack.enter_context(ServerProcess(command, log=log, environment=environment))
        return ClusterNode(name, home / "store", process)

    def check(self) -> None:
        """Stop every agent, and prove its store sound."""
        for node in self.nodes:
            node.process.stop()
            assert findings(node.root) == []

    def _settings(self, name: str, peers: Mapping[str, Any]) -> dict[str, Any]:
        key_file = self.base / "key"
        if not key_file.exists():
            key_file.write_text(KEY + "\n")
        section = {
            "listen": name,
            "members": [{"address": each} for each in self.names],
            "key_file": str(key_file),
            "stall_seconds": BUSY,
            **self.peers,
            **peers,
        }
        return {**self.settings, "peers": section}


@contextmanager
def cluster(base: Path, count: int, **options: Any) -> Iterator[Cluster]:
    """A cluster of so many names, none of them started."""
    with ExitStack() as stack:
        yield Cluster(base, addresses(count), stack, **options)
