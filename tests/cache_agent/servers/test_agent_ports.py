"""A whole agent as pods and other strangers see it: which ports it has, what they change, who can hold them up."""

from __future__ import annotations

import http.client
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache_agent.api.control_client import AgentClient
from cache_agent.api.wire import PullBody
from cache_agent.servers.accept_loop import ConnectionLimits
from cache_agent.servers.control import ControlApi
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agent_process import AgentProcess
from tests.cache_agent.servers.http_client import fetch
from tests.cache_agent.servers.published import PublishedModel, publish_model
from tests.servers.hub import Hub
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers
SERVERS = ("mirror", "hub", "observe")
METHODS = (
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PROPFIND",
)
MOST_MEGABYTES = 150


@contextmanager
def many_files() -> Iterator[None]:
    """As many open files as this process, and those that it starts, may have."""
    some, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (some, most))


@dataclass(frozen=True)
class Whole:
    """An agent with every TCP server open, and a model in its cache."""

    agent: AgentProcess
    control: AgentClient
    model: PublishedModel

    def state(self) -> str:
        """Everything that a request could change."""
        models, leases, space = self.control.models(), self.control.leases(), self.control.space()
        return f"{models} {leases} {space.own} {space.budget} {space.promised}"


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, hub: Hub, registry: DockerRegistry
) -> Iterator[Whole]:
    root = tmp_path_factory.mktemp("ports") / "store"
    servers = {f"WEIGHTYARD_SERVERS__{name.upper()}": "127.0.0.1:0" for name in SERVERS}
    agent = AgentProcess(root, WEIGHTYARD_TIERS__HUB__ENDPOINT=hub.url, **servers)
    agent.start()
    try:
        control = AgentClient.from_socket(root / "agent.sock")
        assert control is not None
        model = publish_model(f"{registry.host}/ports/model:v1", seed=41)
        assert list(control.pull(PullBody(image=model.image)))
        yield Whole(agent, control, model)
    finally:
        agent.stop()
    assert findings(root) == []


def listening(pid: int) -> set[str]:
    """HOST:PORT of every TCP socket on which a process listens."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            sockets.add(file.readlink().name)
    found = set()
    tables = [Path(f"/proc/{pid}/net/{table}") for table in ("tcp", "tcp6")]
    for table in (each for each in tables if each.exists()):  # not every machine has IPv6
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                ipv4 = table.name == "tcp"
                host = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if ipv4 else address
                found.add(f"{host}:{int(port, 16)}")
    return found


def control_routes() -> set[tuple[str, str]]:
    """Every method and path of the control API."""
    app = ControlApi(None, None, _NoRoutes(), None, _NoRoutes()).application()  # type: ignore[arg-type]
    return {
        (route.method, str(route.resource.canonical))
        for route in app.router.routes()
        if route.resource
    }


class _NoRoutes:
    def routes(self) -> list[object]:
        return []


def test_nothing_that_changes_state_is_reachable_from_a_pod(whole: Whole) -> None:
    """Every TCP port that the agent has is a server's; on each, every route of the control API by every method."""
    ports = {whole.agent.servers[name] for name in SERVERS}
    assert listening(whole.agent.pid) == ports
    routes = control_routes()
    assert {"POST", "DELETE"} <= {method for method, _ in routes}
    before = whole.state()
    key = str(whole.control.models()[0].key)
    for port in ports:
        for path in {path for _, path in routes}:
            target = f"{path.replace('{id}', 'x')}?name={key}&unpin=1&repair=1"
            for method in METHODS:
                assert _status(port, method, target) in (400, 403, 404, 405, 501), (method, path)
    assert whole.state() == before


def test_two_thousand_connections_take_little_memory_and_nobody_elses_place(whole: Whole) -> None:
    """All of one address: those beyond its limit are closed at once."""
    host, _, port = whole.agent.servers["mirror"].rpartition(":")
    mirror = (host, int(port))
    with ExitStack() as stack:
        stack.enter_context(many_files())
        held = sum(
            _is_answered(stack.enter_context(socket.create_connection(mirror))) for _ in range(2000)
        )
        assert ConnectionLimits.of_process().each >= held > 0
        status = Path(f"/proc/{whole.agent.pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) / 1e3 < MOST_MEGABYTES
        other = socket.create_connection(mirror, source_address=("127.0.0.2", 0))
        assert _is_answered(stack.enter_context(other))
    assert fetch(whole.agent.servers["mirror"], "/v2/").status == 200


def _is_answered(client: socket.socket) -> bool:
    try:
        client.sendall(b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\n\r\n")
        return client.recv(4096).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


@pytest.mark.parametrize("server", SERVERS)
def test_who_never_finishes_a_request_holds_up_nobody(whole: Whole, server: str) -> None:
    host, _, port = whole.agent.servers[server].rpartition(":")
    beginnings = (
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
    )
    with ExitStack() as stack:
        for number in range(120):
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall(beginnings[number % len(beginnings)])
        paths = {"mirror": "/v2/", "hub": "/api/models/no/such", "observe": "/livez"}
        assert fetch(whole.agent.servers[server], paths[server]).status in (200, 401, 404)


def _status(port: str, method: str, target: str) -> int:
    connection = http.client.HTTPConnection(port)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        connection.putheader("Content-Length", "2")
        connection.endheaders(b"{}")
        return connection.getresponse().status
    finally:
        connection.close()
