"""Where a registry may direct requests to: token servers, redirects, upload locations, pages."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from modelimage.access import Access, open_repository
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidInput, RemoteRefused, Unreachable, WeightyardError
from modelimage.reference import RegistryReference
from modelimage.registry.client import RegistryRepository
from modelimage.registry.connections import Connections
from modelimage.registry.destinations import (
    Destinations,
    check_internal,
    is_internal,
    parse_address,
)
from modelimage.registry.exchange import Request, WebOrigin
from modelimage.registry.network_options import Timeouts, TlsOptions
from modelimage.registry.retry import RetryPolicy
from modelimage.registry.transport import Network
from modelimage.repository import BlobContent
from tests.cache_agent.peers.certificates import Authority
from tests.servers.httpserver import Handler, LoopbackServer

INTERNAL = [
    "127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0", "255.255.255.255", "224.0.0.1", "198.18.0.1",  # noqa: S104
    "::", "::1", "fe80::1%eth0", "fe80::a9fe:a9fe", "fec0::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254",
    "ff02::1", "2001:db8::1",
    # The same IPv4 addresses in IPv6 clothes.
    "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1", "2002:a9fe:a9fe::1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    "2606:4700::5efe:a00:1", "2606:4700::200:5efe:7f00:1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
DIGEST = Digest.of(b"x")
BLOB = Descriptor("application/octet-stream", DIGEST, 1)


@pytest.mark.parametrize("text", INTERNAL)
def test_internal_addresses_are_known_in_every_form(text: str) -> None:
    assert is_internal(parse_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_known_too(text: str) -> None:
    assert not is_internal(parse_address(text))


def names(table: Mapping[str, Sequence[str]]) -> Callable[[str, int], Sequence[str]]:
    """A resolver that knows these names, and addresses."""
    return lambda host, port: table.get(host, [host])


def allowed(
    target: str, registry: str = "https://reg.example", *internal: str, **table: Sequence[str]
) -> tuple[str, ...] | None:
    known = {name.replace("_", "."): at for name, at in table.items()}
    known.setdefault("reg.example", ["8.8.8.8"])
    asked = Destinations(frozenset(internal), names(known))
    return asked.addresses(WebOrigin.parse(target), WebOrigin.parse(registry))


def refused(*args: str, **table: Sequence[str]) -> bool:
    try:
        allowed(*args, **table)
    except RemoteRefused:
        return True
    return False


@pytest.mark.parametrize("text", INTERNAL)
def test_no_registry_directs_to_an_internal_address(text: str) -> None:
    """Neither by number nor by a name that resolves there."""
    assert refused("https://token.example/", token_example=[text])
    address = text.partition("%")[0]
    host = f"[{address}]" if ":" in address else address
    assert refused(f"https://{host}/")


def test_public_servers_are_reached_at_the_addresses_that_were_checked() -> None:
    assert allowed("https://cdn.example", cdn_example=PUBLIC) == tuple(PUBLIC)
    # Of a name that resolves to both kinds, only the public ones are left.
    assert allowed("https://cdn.example", cdn_example=["10.0.0.1", "1.1.1.1"]) == ("1.1.1.1",)


def test_without_tls_only_the_registrys_own_site_is_allowed() -> None:
    assert refused("http://cdn.example", cdn_example=["1.1.1.1"])
    assert refused("http://cdn.example", cdn_example=["8.8.8.8"])
    assert allowed("http://auth.example", "http://reg.example", auth_example=["8.8.8.8"])
    assert refused("http://auth.example", "http://reg.example", auth_example=["1.1.1.1"])
    assert allowed("https://auth.example", "http://reg.example", auth_example=["1.1.1.1"])


@pytest.mark.parametrize("address", ["8.8.8.8", "10.0.0.5", "169.254.169.254"])
def test_a_registrys_own_name_is_not_asked_without_the_tls_that_it_has(address: str) -> None:
    """Its owner may point the name to what answers inside, and only a certificate would tell."""
    assert refused("http://reg.example/token", reg_example=[address])
    assert allowed("https://reg.example/token", reg_example=[address]) is None
    assert allowed("http://reg.example/token", "http://reg.example", reg_example=[address]) is None


def test_an_internal_registry_may_name_itself_and_nothing_beside_it() -> None:
    inside = {"reg_example": ["10.0.0.5"], "token_example": ["10.0.0.5"]}
    assert allowed("https://reg.example:8443/") is None
    assert allowed("https://token.example", **inside) == ("10.0.0.5",)
    assert refused("https://token.example", reg_example=["10.0.0.5"], token_example=["10.0.0.6"])


def test_a_registrys_name_opens_no_metadata() -> None:
    """Whoever owns the registry's name could otherwise add the address to it."""
    for address in ("169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254"):
        both = ["8.8.8.8", address]
        assert refused("https://token.example", reg_example=both, token_example=[address])


@pytest.mark.parametrize(
    ("listed", "target"),
    [
        ("minio.example", "http://minio.example:9000"),
        ("minio.example:9000", "http://minio.example:9000"),
        ("10.0.0.0/8", "https://minio.example"),
        ("fd00::/8", "https://[fd00::7]"),
        ("[fd00::7]:443", "https://[fd00::7]"),
    ],
)
def test_an_operator_may_list_hosts_and_networks(listed: str, target: str) -> None:
    assert not refused(target, "https://reg.example", listed, minio_example=["10.0.0.7"])
    assert refused(target, "https://reg.example", "other.example", minio_example=["10.0.0.7"])


@pytest.mark.parametrize("entry", ["https://x", "", "10.0.0.0/33", "a b", "x/y"])
def test_the_list_is_checked(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_internal([entry])
    with pytest.raises(InvalidInput, match="--internal-host"):
        Access.from_environment({}, internal_hosts=[entry])


# With sockets: nothing arrives at the internal server, whatever part of a registry's answers leads there.


class _Registry(Handler):
    def _handle(self) -> None:
        owner = cast("Hostile", cast("Any", self.server).owner)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(*owner.answer_to(self.command, self.path))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815


class Hostile(LoopbackServer):
    """A registry that names `victim` in the way that its `trick` says."""

    HANDLER = _Registry

    def __init__(self, trick: str, victim: str) -> None:
        self.trick, self.victim = trick, victim

    def answer_to(self, method: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        if self.trick == "realm":
            return 401, b"", {"WWW-Authenticate": f'Bearer realm="{self.victim}/token",service="x"'}
        if self.trick == "upload":
            headers = {"Location": f"{self.victim}/upload"}
            return (202 if method == "POST" else 404), b"", headers
        return 307, b"", {"Location": f"{self.victim}/latest/meta-data"}


@contextlib.contextmanager
def internal_server() -> Iterator[tuple[socket.socket, int]]:
    """A listener beside the registry's address. What connects to it waits in its queue."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", 0))
        listener.listen()
        listener.setblocking(False)
        yield listener, listener.getsockname()[1]


def uses(repository: RegistryRepository) -> dict[str, Callable[[], object]]:
    """Every kind of request that a repository sends."""

    def read() -> None:
        with repository.blob(BLOB) as stream:
            stream.readinto(memoryview(bytearray(1)))

    def send() -> None:
        repository.put_blob(BlobContent(BLOB, lambda start: iter((b"x"[start:],))))

    return {
        "resolve": lambda: repository.resolve("v1"),
        "manifest": lambda: repository.manifest(BLOB),
        "blob": read,
        "tags": repository.tags,
        "referrers": lambda: repository.referrers(DIGEST),
        "put_blob": send,
        "put_manifest": lambda: repository.put_manifest(
            Descriptor("a/b", Digest.of(b"{}"), 2), b"{}"
        ),
        "delete": lambda: repository.delete_manifest(DIGEST),
    }


FORMS = ["127.0.0.2", "[::ffff:127.0.0.2]", "0x7f.2", "2130706434", "127.2"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("trick", ["realm", "redirect", "upload"])
def test_nothing_reaches_an_internal_server(trick: str, form: str) -> None:
    with internal_server() as (listener, port), Hostile(trick, f"http://{form}:{port}") as registry:
        access = Access(connections=Connections(policy=RetryPolicy(attempts=1)))
        repository = open_repository(RegistryReference(registry.host, "m"), access)
        for name, use in uses(repository).items():
            if trick == "upload" and name != "put_blob":
                continue
            with pytest.raises(WeightyardError) as caught:
                use()
            assert "internal" in caught.value.message, name
            assert "127.0.0.2" not in caught.value.message or "127.0.0.2" in form
        with pytest.raises(BlockingIOError):
            listener.accept()


class _Named(Handler):
    def do_GET(self) -> None:
        cast("Any", self.server).owner.hosts.append(self.headers["Host"])
        body = json.dumps({"token": "t"}).encode()
        self.answer(200, body)


class Storage(LoopbackServer):
    HANDLER = _Named

    def __init__(self) -> None:
        self.hosts: list[str] = []


def test_the_checked_address_is_the_one_that_is_contacted() -> None:
    """The name isn't resolved a second time: it could resolve to another address by then."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        # The second answer would be the attack.
        asked.append(host)
        return ["127.0.0.1"] if asked.count(host) == 1 else ["127.0.0.2"]

    with Storage() as storage:
        port = int(storage.host.rpartition(":")[2])
        network = Network(TlsOptions(), Timeouts(), destinations=Destinations(resolve=resolve))
        registry = WebOrigin.parse("http://registry.test:1")
        url = f"http://storage.test:{port}/v2/?q=a%20b"
        assert network.send(Request("GET", url, named_by=registry)).read(100)
    assert storage.hosts == [f"storage.test:{port}"]
    assert asked.count("storage.test") == 1


def test_an_address_that_does_not_answer_leaves_the_next_one() -> None:
    with Storage() as storage:
        port = int(storage.host.rpartition(":")[2])
        resolve = names(
            {"storage.test": ["127.0.0.3", "127.0.0.1"], "r.test": ["127.0.0.3", "127.0.0.1"]}
        )
        network = Network(TlsOptions(), Timeouts(), destinations=Destinations(resolve=resolve))
        request = Request(
            "GET", f"http://storage.test:{port}/", named_by=WebOrigin.parse("http://r.test")
        )
        assert network.send(request).read(100)
        # None of them answers.
        deaf = Destinations(resolve=names({"storage.test": ["127.0.0.3"], "r.test": ["127.0.0.3"]}))
        with pytest.raises(Unreachable, match="refused"):
            Network(TlsOptions(), Timeouts(), destinations=deaf).send(request)


def test_the_certificate_must_be_that_of_the_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    issued = authority.issue("storage.test")
    resolve = names(
        {"storage.test": ["127.0.0.1"], "other.test": ["127.0.0.1"], "r.test": ["127.0.0.1"]}
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    with Storage() as storage:
        storage._server.socket = context.wrap_socket(storage._server.socket, server_side=True)
        port = int(storage.host.rpartition(":")[2])
        tls = TlsOptions(authority.certificate)
        network = Network(tls, Timeouts(), destinations=Destinations(resolve=resolve))
        registry = WebOrigin.parse("https://r.test")
        good = Request("GET", f"https://storage.test:{port}/", named_by=registry)
        assert network.send(good).read(100)
        with pytest.raises(RemoteRefused, match="no secure connection"):
            network.send(Request("GET", f"https://other.test:{port}/", named_by=registry))
