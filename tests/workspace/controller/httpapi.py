"""The fake API server over HTTPS: authentication, lists, watches, server-side apply, and faults that controllers meet.

Only callers with its token get an answer, and only clients that trust its authority reach it, like a real one.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from cache_agent.api.kube.connection import Connection, TokenCredentials, make_context
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.token_reviews import ACCESS_REVIEWS, TOKEN_REVIEWS
from tests.cache_agent.peers.certificates import Authority
from tests.workspace.controller.admitting import (
    Invalid,
    check,
    check_applied,
    check_merged,
    of_part,
    placed,
)
from tests.workspace.controller.callers import Callers
from tests.workspace.controller.fakeapi import Conflict, FakeApi, Missing
from tests.workspace.controller.keda import has_kind, install_keda
from tests.workspace.controller.paging import BadToken, Pages, TooOld
from tests.workspace.controller.selection import Filter
from tests.workspace.controller.statuses import failure
from tests.workspace.controller.watch_log import WatchLog
from workspace.controller.cluster.kube_api import RESOURCES
from workspace.controller.cluster.watches import OPTIONAL
from workspace.controller.observation.objects import is_ready

Json = dict[str, Any]


class HttpApi:
    """Serves a FakeApi on a loopback port. `faults` are statuses for the next writes; `requests` counts by verb.

    `answers` are the statuses of the next requests of a verb for a kind: ("list", "Node"), ("watch", …), ("patch", …).
    `refused` are kinds whose writes are refused, as by a quota or a webhook, with a status and a message.
    `callers` says who may do what, and issues tokens of service accounts.
    `watches` and `pages` have the faults that watches and lists have.
    `users` are those behind tokens to review, and `readers` the resources that each may list everywhere.
    `page_size` bounds a list's page further than its `limit` does.
    `logs` are those of pods, by namespace and name; a pod without one has no container that runs.
    Kinds of other operators are served while their CustomResourceDefinitions are there; `keda` installs KEDA's.
    `plain` serves HTTP without authentication instead, for programs that stand in for others.
    """

    def __init__(self, api: FakeApi, *, keda: bool = True, plain: bool = False) -> None:
        self.api = api
        if keda and not has_kind(api, "ScaledObject"):
            install_keda(api)
        self._plain = plain
        self.callers = Callers(api)
        self.faults: deque[int] = deque()
        self.answers: dict[tuple[str, str], deque[int]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.logs: dict[tuple[str, str], str] = {}
        self.requests: dict[str, int] = {}
        self.users: dict[str, str] = {}
        self.readers: dict[str, set[str]] = {}
        self.page_size = 500
        self.watches = WatchLog(api)
        self.pages = Pages()
        self._restored: set[str] | None = None

    async def __aenter__(self) -> Self:
        self.authority: bytes | None = None
        self._context: ssl.SSLContext | None = None
        if not self._plain:
            self.authority, self._context = _certificates()
        self._port = 0
        await self._start()
        self.url = f"http{'' if self._plain else 's'}://localhost:{self._port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        await self._stop()

    async def _start(self) -> None:
        app = web.Application(middlewares=[] if self._plain else [self._authenticate])
        app.router.add_get("/api", self._core)
        app.router.add_get("/apis", self._apis)
        app.router.add_get("/version", self._version)
        app.router.add_post(TOKEN_REVIEWS, self._review_token)
        app.router.add_post(ACCESS_REVIEWS, self._review_access)
        app.router.add_route("*", "/{tail:.*}", self._any)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "localhost", self._port, ssl_context=self._context).start()
        self._port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        self.watches.close()
        await self._runner.cleanup()

    @contextlib.asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """In this context no server is there. Afterwards one that knows nothing of the watches before."""
        await self._stop()
        yield
        self.watches.forget(starting=True)
        await self._start()

    def connection(self) -> Connection:
        """How a client with the right token connects."""
        trusted = make_context(self.authority) if self.authority else None
        return Connection(self.url, TokenCredentials(trusted, self.callers.token))

    def client(self) -> KubeClient:
        """A client of this server."""
        return KubeClient(self.connection(), role="controller")

    @web.middleware
    async def _authenticate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        refusal = self.callers.refusal(request)
        if refusal is not None and refusal.status == 401:
            return refusal
        if self._restored is not None:
            if request.query.get("watch") == "true":
                self._restored.add(request.path)
            return failure(503, "etcd is being restored")
        return refusal or await handler(request)

    @contextlib.contextmanager
    def restored(self, backup: FakeApi) -> Iterator[set[str]]:
        """As etcd from a backup: away in this context, and afterwards as it was then, with the versions of then.

        Gives the paths of the watches that were asked for meanwhile.
        """
        self._restored = set()
        self.watches.close()
        yield self._restored
        self.api.go_back(backup)
        self.watches.forget()
        self._restored = None

    def writes(self) -> int:
        return sum(count for verb, count in self.requests.items() if verb != "GET")

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "25"})

    async def _review_token(self, request: web.Request) -> web.Response:
        document = await request.json()
        user = self.users.get(document["spec"].pop("token"))
        found: Json = {"authenticated": user is not None}
        found |= {"user": {"username": user, "groups": []}} if user else {"error": "unknown token"}
        return web.json_response({**document, "status": found}, status=201)

    async def _review_access(self, request: web.Request) -> web.Response:
        document = await request.json()
        asked = document["spec"]["resourceAttributes"]
        allowed = self.readers.get(document["spec"]["user"], set())
        found = {"allowed": asked["verb"] == "list" and asked["resource"] in allowed}
        return web.json_response({**document, "status": found}, status=201)

    async def _core(self, _: web.Request) -> web.Response:
        return web.json_response({"versions": ["v1"]})

    async def _apis(self, request: web.Request) -> web.Response:
        groups: dict[str, set[str]] = {}
        for kind, resource in RESOURCES.items():
            group, _, version = resource.api.rpartition("/")
            if group and self._is_served(kind):
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
        if kind is None or not self._is_served(kind):
            return failure(404, f"no {rest[0]}")
        fault = self._fault(_verb(request, rest), kind)
        if fault is not None:
            return failure(*fault)
        try:
            return await self._object(request, kind, namespace, rest[1:])
        except (Missing, Conflict, Invalid) as error:
            return failure(error.status, str(error))

    def _is_served(self, kind: str) -> bool:
        return kind not in OPTIONAL or has_kind(self.api, kind)

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
            return web.json_response(
                self._create(kind, rest, namespace=space, body=body), status=201
            )
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

    def _create(self, kind: str, rest: list[str], *, namespace: str, body: Json) -> Json:
        if rest[1:] == ["token"]:
            return self.callers.issue(namespace, rest[0])
        document = of_part(placed(body, kind, namespace), kind, status=False)
        check(document)
        return self.api.create(document)

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
            return failure(400, f"container {container!r} in pod {name!r} is waiting to start")
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
        return failure(503, "no endpoints available for service")

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
            return await self.watches.serve(request, kind)
        wanted, query = Filter.of(request, kind), request.query

        def current() -> list[Json]:
            found = [each for each in self.api.list(kind, namespace) if wanted.matches(each)]
            for each in found:
                del each["kind"], each["apiVersion"]
            return found

        limit = min(self.page_size, int(query.get("limit") or self.page_size))
        try:
            items, metadata = self.pages.page(
                f"{request.path} {wanted}", query.get("continue", ""), limit,
                version=self.watches.latest, current=current,
            )  # fmt: skip
        except BadToken as error:
            return failure(400, str(error))
        except TooOld as error:
            return failure(410, str(error), **{"continue": error.token})
        api = RESOURCES[kind].api
        return web.json_response(
            {"kind": f"{kind}List", "apiVersion": api, "metadata": metadata, "items": items}
        )


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
