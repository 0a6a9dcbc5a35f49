"""The fake API server over real HTTP: lists, watches, server-side apply, and the faults that controllers meet."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import kopf
from aiohttp import web

from tests.workspace.controller.fakeapi import Conflict, FakeApi, Missing
from workspace.controller.kube_api import RESOURCES
from workspace.controller.objects import is_ready

Json = dict[str, Any]
# kubectl shows these words, not the number.
_REASONS = {404: "NotFound", 409: "Conflict", 429: "TooManyRequests"}


class HttpApi:
    """Serves a FakeApi on a loopback port. `faults` are statuses for the next writes; `requests` counts by verb."""

    def __init__(self, api: FakeApi, *, groups: tuple[str, ...] = ("keda.sh",)) -> None:
        self.api = api
        self.faults: deque[int] = deque()
        self.requests: dict[str, int] = {}
        self._groups = groups
        self._deaf = False
        self._streams: set[tuple[str, asyncio.Queue[Json | None]]] = set()
        api.watchers.append(self._tell)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/api", self._core)
        app.router.add_get("/apis", self._apis)
        app.router.add_get("/version", self._version)
        app.router.add_route("*", "/{tail:.*}", self._any)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.break_watches()
        await self._runner.cleanup()

    def connection(self) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=self.url)

    def break_watches(self) -> None:
        """Every watch ends, as when a server restarts."""
        for _, queue in self._streams:
            queue.put_nowait(None)

    @contextlib.contextmanager
    def deaf_watches(self) -> Iterator[None]:
        """What happens in this context no watch tells."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    def expire_watches(self) -> None:
        """Every watch is told that what it asks for is too old (410), as after a compaction: it must list again."""
        gone = {
            "kind": "Status",
            "status": "Failure",
            "reason": "Expired",
            "code": 410,
            "message": "too old",
        }
        for _, queue in self._streams:
            queue.put_nowait({"type": "ERROR", "object": gone})
            queue.put_nowait(None)

    def writes(self) -> int:
        return sum(count for verb, count in self.requests.items() if verb != "GET")

    def _tell(self, kind: str, document: Json) -> None:
        if self._deaf:
            return
        for resource, queue in self._streams:
            if resource == document["kind"]:
                queue.put_nowait({"type": kind, "object": document})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "25"})

    async def _core(self, _: web.Request) -> web.Response:
        return web.json_response({"versions": ["v1"]})

    async def _apis(self, _: web.Request) -> web.Response:
        groups: dict[str, set[str]] = {}
        for resource in RESOURCES.values():
            group, _, version = resource.api.rpartition("/")
            if group and (group != "keda.sh" or group in self._groups):
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
        if kind is None:
            return _failure(404, f"no {rest[0]}")
        if request.method != "GET" and self.faults:
            return _failure(self.faults.popleft(), "a fault that the test asked for")
        try:
            return await self._object(request, kind, namespace, rest[1:])
        except Missing as error:
            return _failure(404, str(error))
        except Conflict as error:
            return _failure(409, str(error))

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
        if api == "v1":  # kopf waits until it has seen that there are namespaces
            spaces = {"name": "namespaces", "singularName": "namespace", "kind": "Namespace"}
            found.append({**spaces, "namespaced": False, "verbs": verbs})
        return web.json_response({"resources": found})

    async def _object(
        self, request: web.Request, kind: str, namespace: str | None, rest: list[str]
    ) -> web.StreamResponse:
        space = namespace or ""
        if request.method == "GET" and not rest:
            return await self._list(request, kind, namespace)
        if request.method == "GET":
            asked = rest[1:2] == ["proxy"]
            return (
                self._ask_service(space, rest[0])
                if asked
                else web.json_response(self.api.get(kind, space, rest[0]))
            )
        body = await request.json() if request.can_read_body else {}
        if request.method == "PATCH":
            return web.json_response(self._patch(request, kind, rest, namespace=space, body=body))
        if request.method == "POST":
            return web.json_response(self.api.create(body), status=201)
        if request.method == "PUT":
            return web.json_response(self._replace(kind, space, rest[0], body))
        uid = body.get("preconditions", {}).get("uid")
        self.api.delete(kind, space, rest[0], uid=uid)
        return web.json_response({"kind": "Status"})

    def _patch(
        self, request: web.Request, kind: str, rest: list[str], *, namespace: str, body: Json
    ) -> Json:
        if request.content_type == "application/merge-patch+json":
            return self.api.merge_patch(kind, rest[0], body, namespace=namespace)
        assert request.content_type == "application/apply-patch+yaml"
        manager, force = request.query["fieldManager"], request.query.get("force") == "true"
        return self.api.apply(body, manager=manager, force=force, status=rest[1:] == ["status"])

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
        selector = request.query.get("labelSelector", "")
        labels = dict(each.split("=", 1) for each in selector.split(",") if "=" in each)
        there = [each for each in selector.split(",") if each and "=" not in each]
        items = [
            each
            for each in self.api.list(kind, namespace, labels)
            if all(name in (each["metadata"].get("labels") or {}) for name in there)
        ]
        for each in items:
            del each["kind"], each["apiVersion"]
        metadata = {"resourceVersion": "1"}
        api = RESOURCES[kind].api
        return web.json_response(
            {"kind": f"{kind}List", "apiVersion": api, "metadata": metadata, "items": items}
        )

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        queue: asyncio.Queue[Json | None] = asyncio.Queue()
        entry = (kind, queue)
        self._streams.add(entry)
        # What happened between the list and this watch isn't replayed here, so it is sent again.
        for each in self.api.list(kind):
            queue.put_nowait({"type": "MODIFIED", "object": each})
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


def _failure(status: int, message: str) -> web.Response:
    headers = {"Retry-After": "0"} if status == 429 else {}
    failure = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}
    return web.json_response(
        {**failure, "reason": _REASONS.get(status, ""), "message": message},
        status=status,
        headers=headers,
    )
