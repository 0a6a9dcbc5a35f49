"""The control API: HTTP over a unix socket, and over a loopback port if one is configured.

    GET  /livez /readyz /metrics
    GET  /v1/models               GET, DELETE /v1/model?name=
    POST /v1/pull                 progress as JSON lines, then `done` or `error`; closing the connection cancels
    GET, POST /v1/leases          DELETE /v1/leases/{id}
    POST /v1/pin /v1/gc /v1/check /v1/warm
    GET  /v1/space /v1/status     /v1/explain?name=     /v1/activity     /v1/events?after=
    GET  /page/  /page/events     the page, and what it shows as server-sent events

Parses requests, calls the service in a thread and writes responses. Must not use the store or sources directly.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, TypeVar

from aiohttp import web
from pydantic import ValidationError

from cache_agent.api.errors import status_of, to_view
from cache_agent.api.page.page_server import PageServer
from cache_agent.api.wire import GcBody, LeaseBody, PinBody, PullBody, WarmBody, to_document
from cache_agent.api.wire_parsers import parse_json
from cache_agent.errors import AgentBug, exhausted, is_exhaustion
from cache_agent.node.control_service import Service, done_view, progress_view, with_desired
from cache_agent.node.threads import BlockingExecutor
from cache_agent.observability.recent_events import RecentEvents
from cache_agent.servers.observe import ObserveApi
from modelimage.errors import InvalidInput, WeightyardError, first_line
from modelimage.trace_headers import TRACEPARENT

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)
_PROGRESS_SECONDS: Final = 0.2
_MAX_BODY: Final = 1 << 20
_MOST_DIGITS: Final = 18
Body = TypeVar("Body", bound="DataclassInstance")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ControlApi:
    """The control API's routes for one agent."""

    def __init__(
        self,
        service: Service,
        executor: BlockingExecutor,
        observe: ObserveApi,
        recent: RecentEvents,
        page: PageServer,
    ) -> None:
        self._service, self._executor, self._observe = service, executor, observe
        self._recent, self._page = recent, page

    def application(self) -> web.Application:
        """The aiohttp application with every route."""
        app = web.Application(middlewares=[_errors], client_max_size=_MAX_BODY)
        app.add_routes(
            [
                *self._observe.routes(),
                *self._page.routes(),
                web.get("/v1/models", self._models),
                web.get("/v1/model", self._model),
                web.delete("/v1/model", self._remove),
                web.post("/v1/pull", self._pull),
                web.get("/v1/leases", self._leases),
                web.post("/v1/leases", self._lease),
                web.delete("/v1/leases/{id}", self._release),
                web.post("/v1/pin", self._pin),
                web.post("/v1/gc", self._gc),
                web.get("/v1/status", self._status),
                web.get("/v1/space", self._space),
                web.get("/v1/explain", self._explain),
                web.get("/v1/activity", self._activity),
                web.get("/v1/events", self._events),
                web.post("/v1/warm", self._warm),
                web.post("/v1/check", self._check),
            ]
        )
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return _many(await self._executor.call(self._service.models))

    async def _model(self, request: web.Request) -> web.Response:
        name = _name(request)
        return _one(await self._executor.call(lambda: self._service.find(name)))

    async def _remove(self, request: web.Request) -> web.Response:
        name, unpin = _name(request), _flag(request, "unpin")
        # Not in a thread: the desired state belongs to the event loop.
        before = self._service.report()
        removed = await self._executor.call(lambda: self._service.remove(name, unpin=unpin))
        return _one(with_desired(removed, before))

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, PullBody)
        parent = request.headers.get(TRACEPARENT, "")
        pull = await self._executor.call(lambda: self._service.start_pull(body, parent))
        answer = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        try:
            await answer.prepare(request)
            async with aclosing(self._executor.follow(pull, _PROGRESS_SECONDS)) as snapshots:
                async for snapshot in snapshots:
                    await _line(answer, progress_view(snapshot))
        except BaseException:
            # Also when `prepare` fails, before `follow` watches the pull: nobody else would cancel it.
            pull.cancel()
            raise
        try:
            # The status line is sent already, so an error can only be the last event of the stream.
            await _line(answer, done_view(pull, body.image))
        except WeightyardError as error:
            await _line(answer, to_view(error))
        except Exception as error:  # noqa: BLE001 - a bulkhead: told in the log, and the caller learns that it is a bug
            await _line(answer, to_view(_bug(error)))
        return answer

    async def _leases(self, request: web.Request) -> web.Response:
        return _many(await self._executor.call(self._service.leases))

    async def _lease(self, request: web.Request) -> web.Response:
        body = await _body(request, LeaseBody)
        return _one(await self._executor.call(lambda: self._service.lease(body)))

    async def _release(self, request: web.Request) -> web.Response:
        lease_id = request.match_info["id"]
        released = await self._executor.call(lambda: self._service.release(lease_id))
        return web.json_response({"released": released})

    async def _pin(self, request: web.Request) -> web.Response:
        body = await _body(request, PinBody)
        return _one(
            await self._executor.call(lambda: self._service.pin(body.model, pinned=body.pinned))
        )

    async def _gc(self, request: web.Request) -> web.Response:
        body = await _body(request, GcBody)
        return _one(await self._executor.call(lambda: self._service.gc(body)))

    async def _warm(self, request: web.Request) -> web.Response:
        body = await _body(request, WarmBody)
        return _one(await self._executor.call(lambda: self._service.warm(body)))

    async def _explain(self, request: web.Request) -> web.Response:
        name = _name(request)
        # As in `_remove`.
        desired = self._service.details()
        return _many(await self._executor.call(lambda: self._service.explain_with(desired, name)))

    async def _activity(self, request: web.Request) -> web.Response:
        return _many(await self._executor.call(self._service.activity))

    async def _events(self, request: web.Request) -> web.Response:
        text = request.query.get("after", "0")
        if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
            raise InvalidInput(f"not the number of an event: {text[:40]!r}")
        return _many(self._recent.after(int(text)))

    async def _status(self, request: web.Request) -> web.Response:
        # As in `_remove`.
        report = self._service.report()
        found = await self._executor.call(lambda: self._service.with_current_pins(report))
        return web.json_response(found.to_document())

    async def _space(self, request: web.Request) -> web.Response:
        return _one(await self._executor.call(self._service.space))

    async def _check(self, request: web.Request) -> web.Response:
        repair, quick = _flag(request, "repair"), _flag(request, "quick")
        return _one(
            await self._executor.call(lambda: self._service.check(repair=repair, quick=quick))
        )


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn an error into its HTTP status and an ErrorView."""
    try:
        return await handler(request)
    except WeightyardError as error:
        return _one(to_view(error), status=status_of(error))
    # aiohttp's own answers, and clients that left, to whom nothing can be said.
    except (web.HTTPException, ConnectionError):
        raise
    except Exception as error:  # noqa: BLE001 - a bulkhead, as in `_pull`
        return _one(to_view(_bug(error)), status=500)


def _bug(error: Exception) -> WeightyardError:
    if is_exhaustion(error):
        return exhausted("the request wasn't carried out", error)
    logger.error("a request to the control API failed", exc_info=error)
    return AgentBug(
        f"the agent failed: {type(error).__name__}: {first_line(error)}",
        hint="This is a bug in weightyard. Report it with the traceback in the agent's log.",
    )


async def _body(request: web.Request, kind: type[Body]) -> Body:
    try:
        return parse_json(kind, await request.read())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"malformed request: {where}: {first['msg']}") from error


def _name(request: web.Request) -> str:
    name = request.query.get("name")
    if not name:
        raise InvalidInput("no model named", hint="Add ?name=KEY.")
    return name


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "0") in ("1", "true")


def _one(view: DataclassInstance, status: int = 200) -> web.Response:
    return web.Response(
        text=json.dumps(to_document(view)), content_type="application/json", status=status
    )


def _many(views: Sequence[DataclassInstance]) -> web.Response:
    return web.json_response([to_document(view) for view in views], dumps=json.dumps)


async def _line(answer: web.StreamResponse, view: DataclassInstance) -> None:
    await answer.write(json.dumps(to_document(view)).encode() + b"\n")
