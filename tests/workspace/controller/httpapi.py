"""The fake API server over HTTPS: authentication, lists, watches, server-side apply, and faults that controllers meet.

Only callers with its token get an answer, and only clients that trust its authority reach it, like a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import secrets
import ssl
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from cache_agent.api.kube.connection import Connection, TokenCredentials, make_context
from cache_agent.api.kube.kube_client import KubeClient
from tests.cache_agent.peers.certificates import Authority
from tests.workspace.controller.admitting import (
    Invalid,
    check,
    check_applied,
    check_merged,
    of_part,
    placed,
)
from tests.workspace.controller.fakeapi import Conflict, FakeApi, Missing
from tests.workspace.controller.keda import KEDA_DEFINITION, install_keda
from tests.workspace.controller.selection import Change, Filter, version_of
from workspace.controller.kube_api import RESOURCES
from workspace.controller.objects import is_ready
from workspace.controller.observed import KEDA_GROUP

Json = dict[str, Any]
_EXPIRED = {
    "kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old resource version",
}  # fmt: skip
# kubectl shows these words, not the number.
_REASONS = {404: "NotFound", 409: "Conflict", 429: "TooManyRequests"}


class HttpApi:
    """Serves a FakeApi on a loopback port. `faults` are statuses for the next writes; `requests` counts by verb.

    `answers` are the statuses of the next requests of a verb for a kind: ("list", "Node"), ("watch", …), ("patch", …).
    `refused` are kinds whose writes are refused, as by a quota or a webhook, with a status and a message.
    `allows` says what its one user may do; see `rbac.Rights`.
    `page_size` bounds a list's page further than its `limit` does.
    `logs` are those of pods, by namespace and name; a pod without one has no container that runs.
    KEDA's kind is served while its CustomResourceDefinition is there, which `keda` installs.
    `plain` serves HTTP without authentication instead, for programs that stand in for others.
    """

    def __init__(self, api: FakeApi, *, keda: bool = True, plain: bool = False) -> None:
        self.api = api
        if keda and not self._has_keda():
            install_keda(api)
        self._plain = plain
        self.token = secrets.token_hex(16)
        self.faults: deque[int] = deque()
        self.answers: dict[tuple[str, str], deque[int]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.logs: dict[tuple[str, str], str] = {}
        self.requests: dict[str, int] = {}
        self.allows: Callable[[web.Request], bool] = lambda _: True
        self.page_size = 500
        self._deaf = False
        self._log: list[Change] = []
        self._oldest = 0  # a watch from before is told 410
        self._known = {api.key(each): copy.deepcopy(each) for each in api.objects.values()}
        self._latest = max(map(version_of, self._known.values()), default=1)
        # A watch is told what comes after the version that it asks for, also when that is far ahead.
        self._streams: set[tuple[Filter, int, asyncio.Queue[Json | None]]] = set()
        self._restored: set[str] | None = None
        api.watchers.append(self._tell)

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[] if self._plain else [self._authenticate])
        app.router.add_get("/api", self._core)
        app.router.add_get("/apis", self._apis)
        app.router.add_get("/version", self._version)
        app.router.add_route("*", "/{tail:.*}", self._any)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        context: ssl.SSLContext | None = None
        self.authority: bytes | None = None
        if not self._plain:
            self.authority, context = _certificates()
        site = web.TCPSite(self._runner, "localhost", 0, ssl_context=context)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http{'' if self._plain else 's'}://localhost:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.break_watches()
        await self._runner.cleanup()

    def connection(self) -> Connection:
        """How a client with the right token connects."""
        trusted = make_context(self.authority) if self.authority else None
        return Connection(self.url, TokenCredentials(trusted, self.token))

    def client(self) -> KubeClient:
        """A client of this server."""
        return KubeClient(self.connection(), role="controller")

    @web.middleware
    async def _authenticate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _failure(401, "Unauthorized")
        if self._restored is not None:
            if request.query.get("watch") == "true":
                self._restored.add(request.path)
            return _failure(503, "etcd is being restored")
        if not self.allows(request):
            return _failure(403, f"forbidden: {request.method} {request.path}")
        return await handler(request)

    def break_watches(self) -> None:
        """Every watch ends, as when a server restarts."""
        for *_, queue in self._streams:
            queue.put_nowait(None)

    @contextlib.contextmanager
    def deaf_watches(self) -> Iterator[None]:
        """What happens in this context no watch tells."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    @contextlib.contextmanager
    def restored(self, backup: FakeApi) -> Iterator[set[str]]:
        """As etcd from a backup: away in this context, and afterwards as it was then, with the versions of then.

        Gives the paths of the watches that were asked for meanwhile.
        """
        self._restored = set()
        self.break_watches()
        yield self._restored
        self.api.go_back(backup)
        self._known = {
            self.api.key(each): copy.deepcopy(each) for each in self.api.objects.values()
        }
        self._latest = max(map(version_of, self._known.values()), default=1)
        self._log.clear()
        self._restored = None

    def expire_watches(self) -> None:
        """Every watch is told that what it asks for is too old (410), as after a compaction: it must list again."""
        self._oldest = self._latest + 1
        for *_, queue in self._streams:
            queue.put_nowait({"type": "ERROR", "object": _EXPIRED})
            queue.put_nowait(None)

    def writes(self) -> int:
        return sum(count for verb, count in self.requests.items() if verb != "GET")

    def _tell(self, kind: str, document: Json) -> None:
        key = self.api.key(document)
        before = self._known.pop(key, None)
        if kind != "DELETED":
            self._known[key] = document
        self._latest = max(self._latest, version_of(document))
        if self._deaf:
            return
        change = Change(
            None if kind == "DELETED" else document,
            document if kind == "DELETED" else before or document,
        )
        self._log.append(change)
        for wanted, since, queue in self._streams:
            event = change.event(wanted)
            if event is not None and change.version > since:
                queue.put_nowait(event)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "25"})

    async def _core(self, _: web.Request) -> web.Response:
        return web.json_response({"versions": ["v1"]})

    async def _apis(self, request: web.Request) -> web.Response:
        groups: dict[str, set[str]] = {}
        for resource in RESOURCES.values():
            group, _, version = resource.api.rpartition("/")
            if group and (group != KEDA_GROUP or self._has_keda()):
                groups.setdefault(group, set()).add(version)
        found = [
            {
                "name": name,
                "versions": [
                    {"version": v, "groupVersion": f"{name}/{v}"} for v in sorted(versions)
                ],
                "preferredVersion": {"version": max(versions)},
            }
            for name, versions in groups.items()
        ]
        return web.json_response({"groups": found})

    async def _any(self, request: web.Request) -> web.StreamResponse:
        self.requests[request.method] = self.requests.get(request.method, 0) + 1
        parts = request.path.strip("/").split("/")
        api, rest = (
            ("/".join(parts[1:2]), parts[2:])
            if parts[0] == "api"
            else ("/".join(parts[1:3]), parts[3:])
        )
        if not rest:
            return self._discovery(api)
        namespace = None
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        kind = next((k for k, r in RESOURCES.items() if (r.api, r.plural) == (api, rest[0])), None)
        if kind is None or (kind == "ScaledObject" and not self._has_keda()):
            return _failure(404, f"no {rest[0]}")
        fault = self._fault(_verb(request, rest), kind)
        if fault is not None:
            return _failure(*fault)
        try:
            return await self._object(request, kind, namespace, rest[1:])
        except (Missing, Conflict, Invalid) as error:
            return _failure(error.status, str(error))

    def _has_keda(self) -> bool:
        return ("CustomResourceDefinition", "", KEDA_DEFINITION) in self.api.objects

    def _fault(self, verb: str, kind: str) -> tuple[int, str] | None:
        asked = self.answers.get((verb, kind))
        if asked:
            return asked.popleft(), "a fault that the test asked for"
        if verb in ("get", "list", "watch"):
            return None
        if self.faults:
            return self.faults.popleft(), "a fault that the test asked for"
        return self.refused.get(kind)

    def _discovery(self, api: str) -> web.Response:
        verbs = ["get", "list", "watch", "create", "update", "patch", "delete"]
        found = [
            {
                "name": r.plural,
                "singularName": k.lower(),
                "kind": k,
                "namespaced": r.namespaced,
                "verbs": verbs,
            }
            for k, r in RESOURCES.items()
            if r.api == api
        ]
        return web.json_response({"resources": found})

    async def _object(
        self, request: web.Request, kind: str, namespace: str | None, rest: list[str]
    ) -> web.StreamResponse:
        space = namespace or ""
        if request.method == "GET" and not rest:
            return await self._list(request, kind, namespace)
        if request.method == "GET":
            return self._read(request, kind, space, rest)
        body = await request.json() if request.can_read_body else {}
        if request.method == "PATCH":
            return web.json_response(self._patch(request, kind, rest, namespace=space, body=body))
        if request.method == "POST":
            document = of_part(placed(body, kind, space), kind, status=False)
            check(document)
            return web.json_response(self.api.create(document), status=201)
        if request.method == "PUT":
            return web.json_response(self._replace(kind, space, rest[0], body))
        uid = body.get("preconditions", {}).get("uid")
        self.api.delete(kind, space, rest[0], uid=uid)
        return web.json_response({"kind": "Status"})

    def _read(self, request: web.Request, kind: str, space: str, rest: list[str]) -> web.Response:
        match rest[1:2]:
            case ["proxy"]:
                return self._ask_service(space, rest[0])
            case ["log"]:
                return self._log_of(request, space, rest[0])
        return web.json_response(self.api.get(kind, space, rest[0]))

    def _patch(
        self, request: web.Request, kind: str, rest: list[str], *, namespace: str, body: Json
    ) -> Json:
        status = rest[1:] == ["status"]
        if request.content_type == "application/merge-patch+json":
            body = of_part(body, kind, status=status)
            check_merged(kind, namespace, rest[0], body, self.api)
            return self.api.merge_patch(kind, rest[0], body, namespace=namespace)
        assert request.content_type == "application/apply-patch+yaml"
        manager, force = request.query["fieldManager"], request.query.get("force") == "true"
        body = of_part(placed(body, kind, namespace), kind, status=status)
        check_applied(body, self.api)
        return self.api.apply(body, manager=manager, force=force, status=status)

    def _log_of(self, request: web.Request, namespace: str, name: str) -> web.Response:
        self.api.get("Pod", namespace, name)
        text = self.logs.get((namespace, name))
        if text is None:
            container = request.query["container"]
            return _failure(400, f"container {container!r} in pod {name!r} is waiting to start")
        assert request.query["timestamps"] == "true", "the logs here have times"
        return web.Response(text=text[: int(request.query["limitBytes"])])

    def _ask_service(self, namespace: str, name: str) -> web.Response:
        """What a vLLM behind a Service says of its models, if a ready one is there."""
        service = self.api.get("Service", namespace, name.partition(":")[0])
        selector = service["spec"]["selector"]
        for pod in self.api.list("Pod", namespace, selector):
            if is_ready(pod):
                args = pod["spec"]["containers"][0]["args"]
                return web.json_response(
                    {"data": [{"id": args[args.index("--served-model-name") + 1]}]}
                )
        return _failure(503, "no endpoints available for service")

    def _replace(self, kind: str, namespace: str, name: str, body: Json) -> Json:
        found = self.api.get(kind, namespace, name)
        version = body["metadata"].get("resourceVersion")
        if version is not None and version != found["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified")

        def change(document: Json) -> None:
            document.clear()
            document.update(body)

        return self.api.update(kind, namespace, name, change, manager="replacer")

    async def _list(
        self, request: web.Request, kind: str, namespace: str | None
    ) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            return await self._watch(request, kind)
        wanted = Filter.of(request, kind)
        items = [each for each in self.api.list(kind, namespace) if wanted.matches(each)]
        for each in items:
            del each["kind"], each["apiVersion"]
        start = int(request.query.get("continue", 0))
        end = start + min(self.page_size, int(request.query.get("limit", len(items))))
        metadata = {"resourceVersion": str(self._latest)}
        if end < len(items):
            metadata["continue"] = str(end)
        api, page = RESOURCES[kind].api, items[start:end]
        return web.json_response(
            {"kind": f"{kind}List", "apiVersion": api, "metadata": metadata, "items": page}
        )

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        """Replays what happened since the resourceVersion that is asked for, then goes on."""
        since = int(request.query["resourceVersion"])
        if since < self._oldest:
            return web.json_response(_EXPIRED, status=410)
        stream = web.StreamResponse()
        await stream.prepare(request)
        queue: asyncio.Queue[Json | None] = asyncio.Queue()
        wanted = Filter.of(request, kind)
        entry = (wanted, since, queue)
        self._streams.add(entry)
        for change in self._log:
            event = change.event(wanted) if change.version > since else None
            if event is not None:
                queue.put_nowait(event)
        try:
            while (event := await queue.get()) is not None:
                await stream.write(json.dumps(event).encode() + b"\n")
        except (ConnectionResetError, asyncio.CancelledError):
            pass
        finally:
            self._streams.discard(entry)
        with contextlib.suppress(ConnectionResetError):
            await stream.write_eof()
        return stream


def _certificates() -> tuple[bytes, ssl.SSLContext]:
    """A new authority's certificate, and the context of a server that it certifies."""
    with tempfile.TemporaryDirectory() as directory:
        authority = Authority(Path(directory) / "authority")
        files = authority.issue("localhost")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files.certificate, files.key)
        return authority.certificate.read_bytes(), context


def _verb(request: web.Request, rest: list[str]) -> str:
    """The verb as in RBAC rules, but a write's method."""
    if request.method != "GET":
        return request.method.lower()
    if request.query.get("watch") == "true":
        return "watch"
    return "get" if len(rest) > 1 else "list"


def _failure(status: int, message: str) -> web.Response:
    headers = {"Retry-After": "0"} if status == 429 else {}
    failure = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}
    return web.json_response(
        {**failure, "reason": _REASONS.get(status, ""), "message": message},
        status=status,
        headers=headers,
    )
