"""The client against an API server that demands TLS, a trusted certificate and valid credentials."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from cache_agent.api.kube.connection import Connection, in_cluster
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.kubeconfig import from_kubeconfig
from modelimage.errors import AccessDenied, Unreachable
from tests.cache_agent.peers.certificates import Authority

Json = dict[str, Any]


class SecureApi:
    """An API server over HTTPS that returns the caller's user; `token` may log in, and so may client certificates."""

    def __init__(self, authority: Authority, *, host: str = "localhost") -> None:
        files = authority.issue(host)
        self._context = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate)
        )
        self._context.load_cert_chain(files.certificate, files.key)
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self.token = "valid"
        self.seen: list[Json] = []

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "localhost", 0, ssl_context=self._context).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        peer = transport.get_extra_info("peercert")
        name = peer["subject"][0][0][1] if peer else None
        self.seen.append({"groups": request.headers.getall("Impersonate-Group", [])})
        if name is None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"message": "Unauthorized"}, status=401)
        if request.query.get("watch"):
            stream = web.StreamResponse()
            await stream.prepare(request)
            await stream.write(b'{"type": "ADDED", "object": {"metadata": {"name": "x"}}}\n')
            return stream
        return web.json_response({"user": name or "token"})


def account(directory: Path, authority: Authority, token: str) -> Path:
    """A pod's service account directory."""
    directory.mkdir(exist_ok=True)
    (directory / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (directory / "token").write_text(token)
    (directory / "namespace").write_text("weightyard")
    return directory


def ask(server: SecureApi, connect: Callable[[int], Connection]) -> Json:
    async def scenario() -> Json:
        async with server.serving() as port, KubeClient(connect(port), role="test") as client:
            return await client.get("/api/v1/nodes/a")

    return asyncio.run(scenario())


def pod(directory: Path) -> Callable[[int], Connection]:
    def connect(port: int) -> Connection:
        environ = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(port)}
        return in_cluster(environ, directory)

    return connect


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def test_a_service_account_trusts_the_clusters_authority(
    tmp_path: Path, authority: Authority
) -> None:
    server = SecureApi(authority)
    assert ask(server, pod(account(tmp_path / "sa", authority, "valid"))) == {"user": "token"}


def test_another_authority_is_not_trusted(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        ask(SecureApi(authority), pod(account(tmp_path / "sa", other, "valid")))


def test_a_token_that_is_not_valid_is_refused(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(AccessDenied, match="Unauthorized"):
        ask(SecureApi(authority), pod(account(tmp_path / "sa", authority, "old")))


def test_a_rotated_token_is_used_and_a_watch_authenticates_too(
    tmp_path: Path, authority: Authority
) -> None:
    server, directory = SecureApi(authority), account(tmp_path / "sa", authority, "valid")

    async def scenario() -> None:
        async with (
            server.serving() as port,
            KubeClient(pod(directory)(port), role="test") as client,
        ):
            await client.get("/x")
            server.token = "rotated"
            with pytest.raises(AccessDenied):
                async for _ in client.watch("/x", {}, "1"):
                    pass
            (directory / "token").write_text("rotated")
            assert await client.get("/x") == {"user": "token"}
            events = [each async for each in client.watch("/x", {}, "1")]
            assert events == [("ADDED", {"metadata": {"name": "x"}})]

    asyncio.run(scenario())


def kubeconfig(path: Path, authority: Authority, user: Json, **cluster: object) -> Path:
    path.write_text(yaml.safe_dump({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"certificate-authority": str(authority.certificate), **cluster}}],
        "users": [{"name": "u", "user": user}],
    }))  # fmt: skip
    return path


def test_a_client_certificate_and_a_server_name(tmp_path: Path, authority: Authority) -> None:
    files = authority.issue("jane")
    user = {
        "client-certificate": str(files.certificate), "client-key": str(files.key),
        "as": "joe", "as-groups": ["a", "b"],
    }  # fmt: skip
    server = SecureApi(authority, host="kubernetes.default")

    def connect(port: int) -> Connection:
        cluster = {"server": f"https://localhost:{port}", "tls-server-name": "kubernetes.default"}
        path = kubeconfig(tmp_path / "k", authority, user, **cluster)
        return from_kubeconfig([path], programs=False, environ={})

    assert ask(server, connect) == {"user": "jane"}
    assert server.seen == [{"groups": ["a", "b"]}]


def test_a_login_programs_token_is_renewed_after_a_refusal(
    tmp_path: Path, authority: Authority
) -> None:
    token = tmp_path / "token"
    status = '{"token": "\'"$(cat "$1")"\'"}'
    script = (
        f'echo \'{{"apiVersion": "client.authentication.k8s.io/v1", "status": {status}}}\'; '
        'echo valid > "$1"'
    )
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh",
            "args": ["-c", script, "login", str(token)],
        }
    }  # fmt: skip
    token.write_text("expired")

    def connect(port: int) -> Connection:
        path = kubeconfig(tmp_path / "k", authority, user, server=f"https://localhost:{port}")
        return from_kubeconfig([path], programs=True, environ={})

    assert ask(SecureApi(authority), connect) == {"user": "token"}


def test_a_page_that_is_no_json_is_no_answer() -> None:
    async def scenario() -> None:
        app = web.Application()

        async def page(_: web.Request) -> web.Response:
            return web.Response(text="<html>portal</html>")

        app.router.add_route("*", "/{tail:.*}", page)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        try:
            async with KubeClient(Connection(f"http://127.0.0.1:{port}"), role="test") as client:
                with pytest.raises(Unreachable, match="JSON"):
                    await client.get("/x")
        finally:
            await runner.cleanup()

    asyncio.run(scenario())


def test_a_peer_that_is_silently_gone_breaks_every_connection(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which connections probe their peer is the kernel's to say: it is asked of every socket that was made.
    made: list[dict[str, int]] = []
    options = {"KEEPALIVE": (socket.SOL_SOCKET, socket.SO_KEEPALIVE)} | {
        name: (socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
        for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT")
    }
    connect = asyncio.SelectorEventLoop.sock_connect

    async def noted(loop: Any, sock: socket.socket, address: Any) -> None:
        await connect(loop, sock, address)
        made.append({name: sock.getsockopt(*option) for name, option in options.items()})

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", noted)
    ask(SecureApi(authority), pod(account(tmp_path / "sa", authority, "valid")))
    assert made
    for each in made:
        assert each["KEEPALIVE"] == 1
        assert each["KEEPIDLE"] + each["KEEPINTVL"] * each["KEEPCNT"] <= 60


def test_an_error_of_the_connection_names_no_python_objects(
    tmp_path: Path, authority: Authority
) -> None:
    server, other = SecureApi(authority), Authority(tmp_path / "other")
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED") as untrusted:
        ask(server, pod(account(tmp_path / "sa", other, "valid")))

    async def away() -> None:
        async with server.serving() as port:
            pass
        connection = pod(account(tmp_path / "sa", authority, "valid"))(port)
        async with KubeClient(connection, role="test") as client:
            await client.get("/api/v1/nodes/a")

    with pytest.raises(Unreachable, match="Connect call failed") as refused:
        asyncio.run(away())
    for caught in (untrusted, refused):
        assert " object at " not in caught.value.message
