"""Clients of every listener that mean harm, two programs over one store, and documents from anyone."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial

from cache_agent.api.kube_objects import API_VERSION
from cache_agent.net.sockets import connect
from modelimage.errors import WeightyardError
from tests.cache_agent.servers.http_client import fetch
from tests.faults.campaign import Kind
from tests.faults.load import Load, under_load
from tests.faults.site import TIGHT, Site
from tests.faults.stage import Round
from tests.servers.process import wait_until

SERVERS = {f"WEIGHTYARD_SERVERS__{name}": "127.0.0.1:0" for name in ("MIRROR", "HUB", "OBSERVE")}
PATHS = {"mirror": "/v2/", "hub": "/api/models/no/such", "observe": "/livez"}
# The Hub behind the endpoint is away.
ANSWERS = (200, 401, 404, 502, 503, 504)
BEGINNINGS = (
    b"",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /v2/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
    b"GET /v2/../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/%00/manifests/%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 300,
    b"HEAD /livez HTTP/1.1\r\nHost: x\r\nRange: bytes=-\r\n\r\n",
    b"GET /v2/a/b/blobs/sha256:"
    + b"0" * 64
    + b" HTTP/1.1\r\nHost: x\r\nRange: bytes=9-1,5-\r\n\r\n",
    b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + b"!" * 8000 + b"\r\n\r\n",
)
VALUES: tuple[object, ...] = (
    None, True, -1, 10**400, 1e308, "x" * 100_000, "\u0000", "\ud800", [], {}, [[[]]] * 100, "../../etc/passwd",
    "sha256:" + "0" * 64, "http://169.254.169.254/m:v1", "127.0.0.1:1/a/b:v1", "oci:/proc/self:x", {"a": {"b": {}}},
)  # fmt: skip
CONTROL = (
    ("POST", "/v1/pull", ("image", "variant", "priority")),
    ("POST", "/v1/leases", ("model", "holder", "id")),
    ("POST", "/v1/pin", ("model", "pinned")),
    ("POST", "/v1/gc", ("need", "dry_run")),
    ("POST", "/v1/warm", ("model", "lock", "unlock")),
    ("GET", "/v1/model", ()),
    ("DELETE", "/v1/leases/x", ()),
)


def addresses(site: Site) -> dict[str, str]:
    """The addresses of the servers, as the agent said when it was ready."""
    assert site.program is not None
    (line,) = [each for each in site.program.log_text().splitlines() if '"ready"' in each]
    return {str(name): str(at) for name, at in json.loads(line)["servers"].items()}


def malformed(server: str, fresh: Round) -> None:
    """Requests that are none, many at a time, some left half-sent; others are answered all the while."""
    site, rng = fresh.site, fresh.rng
    site.settings.update(SERVERS)
    site.start()
    site.promise_all()
    host, _, port = addresses(site)[server].rpartition(":")
    with ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(socket.create_connection((host, int(port))))
            data = rng.choice(BEGINNINGS)
            data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data
            with suppress(OSError):
                client.sendall(data)
            if rng.random() < 0.3:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
        assert fetch(addresses(site)[server], PATHS[server]).status in ANSWERS
        site.client.models()
    site.assert_alive()
    site.prove()


def idle(fresh: Round) -> None:
    """Hundreds of connections that say nothing; the control socket and other clients are served."""
    site = fresh.site
    site.settings.update(SERVERS)
    site.start()
    site.promise_all()
    at = addresses(site)
    with ExitStack() as stack:
        for number in range(300):
            host, _, port = at[sorted(at)[number % len(at)]].rpartition(":")
            with suppress(OSError):
                stack.enter_context(socket.create_connection((host, int(port))))
        site.lease(2, "another")
        host, _, port = at["observe"].rpartition(":")
        with closing(
            socket.create_connection((host, int(port)), source_address=("127.0.0.3", 0))
        ) as other:
            other.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert b" 200 " in other.recv(4096)
    site.assert_alive()
    site.prove()


def hostile_control(fresh: Round) -> None:
    """Bodies of any type to the control API: each is answered, and nothing that was promised goes."""
    site, rng = fresh.site, fresh.rng
    site.start()
    site.promise_all()
    for _ in range(40):
        method, path, fields = rng.choice(CONTROL)
        body = {name: rng.choice(VALUES) for name in fields if rng.random() < 0.8}
        data = json.dumps(rng.choice([body, body, body, rng.choice(VALUES)])).encode()
        answer = b""
        with closing(connect(site.paths.socket, None)) as client, suppress(ConnectionError):
            head = f"{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            client.sendall(head.encode() + data)
            answer = client.recv(64)
        assert answer.startswith((b"HTTP/1.0 ", b"HTTP/1.1 ")), (path, data[:200])
        assert b" 500 " not in answer, (path, data[:200])
    site.assert_alive()
    # Whatever they took is theirs to release; pins of known models they may have changed.
    site.prove()


def documents(fresh: Round) -> None:
    """Desired models from anyone; a good one beside them is fetched."""
    site, rng = fresh.site, fresh.rng
    site.start()
    place = site.root / "prewarm"
    place.mkdir(exist_ok=True)
    good: dict[str, object] = {
        "apiVersion": API_VERSION, "kind": "CachedModel", "metadata": {"name": "good"},
        "spec": {"image": site.models[0].image},
    }  # fmt: skip
    for number in range(12):
        bad = _spoiled(
            good,
            rng.choice(VALUES),
            rng.choice(["apiVersion", "kind", "metadata", "spec", "image", "name"]),
        )
        text = rng.choice(
            [
                json.dumps(bad),
                "[" * 20_000,
                "a: &a [*a]",
                "&a {x: *a}",
                "- " * 20_000,
                "a: " + "1" * 5000,
                "x: 0x" + "f" * 5000,
                "d: 2026-99-99T99:99:99Z",
                "\x00\x01",
                "!!python/object/apply:os.system [id]",
                "a: &a [1,1,1,1,1,1,1,1,1]\n"
                + "\n".join(
                    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]"
                    for n in range(9)
                ),
            ]
        )
        (place / f"bad-{number}.yaml").write_text(text, errors="surrogatepass")
    (place / "bad-bytes.yaml").write_bytes(rng.randbytes(500))
    (place / "good.yaml").write_text(json.dumps(good))

    def fetched() -> bool:
        site.assert_alive()
        return any(model.key == site.models[0].key for model in site.client.models())

    wait_until(fetched, what="the good one")
    for path in place.iterdir():
        path.unlink()
    site.prove()


def _spoiled(document: dict[str, object], value: object, name: str) -> dict[str, object]:
    made = json.loads(json.dumps(document))
    for part in (made, made["spec"], made["metadata"]):
        if name in part:
            part[name] = value
            break
    return dict(made)


def settings(fresh: Round) -> None:
    """Settings that are wrong end a start with a reason, and change nothing at a reload."""
    site, rng = fresh.site, fresh.rng
    name = rng.choice(
        ["BUDGET", "MIN_FREE", "FETCH__STREAMS", "FETCH__BANDWIDTH", "SERVERS__MIRROR", "TIERS__ORDER", "PEERS", "PORT",
         "MAINTENANCE__SCRUB_DAYS", "SERVERS__REGISTRIES", "PREWARM__WINDOW"]
    )  # fmt: skip
    value = rng.choice(
        [
            "",
            "null",
            "-1",
            "1e99999999",
            "9" * 400,
            "[[[[",
            "{a: b}",
            "nan",
            ".inf",
            "!!python/none",
            "%",
            "1TB TB",
        ]
    )
    site.settings[f"WEIGHTYARD_{name}"] = value
    site.launch()
    if site.started():
        site.kill()
    del site.settings[f"WEIGHTYARD_{name}"]
    site.prove()


def two_agents(fresh: Round) -> None:
    """Only one has the store: the others say so and end, whatever became of the socket and the lock's text."""
    site = fresh.site
    site.settings.update(TIGHT)
    site.start()
    with under_load(site):
        for _ in range(3):
            if fresh.rng.random() < 0.3:
                site.paths.lock.write_text("0")
            second = site.run("agent")
            assert second.wait() not in (0, 1), second.tail()
            assert '"Bug"' not in second.log_text(), second.tail()
    site.assert_alive()
    site.prove()


def commands_beside(fresh: Round) -> None:
    """Commands without an agent, several at once, and an agent that starts among them."""
    site, rng = fresh.site, fresh.rng
    images = [model.image for model in site.models]
    running = [
        site.run(
            *rng.choice(
                [
                    ("pull", rng.choice(images)),
                    ("gc",),
                    ("check", "--repair"),
                    ("rm", rng.choice(images)),
                ]
            )
        )
        for _ in range(4)
    ]
    site.launch()
    for each in (*running,):
        each.wait()
        assert '"Bug"' not in each.log_text(), each.tail()
    site.started()
    site.prove()


def stopped_under_load(fresh: Round) -> None:
    """SIGTERM in the middle of work ends it well."""
    site = fresh.site
    site.settings.update(TIGHT)
    site.start()
    with Load(site, operations=fresh.rng.randrange(1, 8)), suppress(WeightyardError):
        site.client.models()
    with under_load(site):
        site.stop()
    site.prove()


def _kinds() -> Iterator[Kind]:
    for server in PATHS:
        yield Kind(f"malformed requests to {server}", partial(malformed, server))
    rows: dict[str, Callable[[Round], None]] = {
        "idle connections": idle,
        "hostile bodies to the control API": hostile_control,
        "hostile documents": documents,
        "hostile settings": settings,
        "a second agent": two_agents,
        "commands at once": commands_beside,
        "stopped under load": stopped_under_load,
    }
    for name, body in rows.items():
        yield Kind(name, body)


KINDS = tuple(_kinds())
