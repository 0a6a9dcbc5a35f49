"""A small synchronous client of the control API, for commands and for programs that need a lease.

Speaks HTTP over the agent's unix socket, with one connection per request. Must depend only on the wire types.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from pydantic import ValidationError

from cache_agent.api.errors import from_view
from cache_agent.api.wire import (
    CheckView,
    ErrorView,
    EventView,
    ExplainView,
    GcBody,
    GcView,
    LeaseBody,
    LeaseView,
    ModelView,
    PinBody,
    PullBody,
    PullDone,
    PullProgress,
    RemovedView,
    SpaceReport,
    WarmBody,
    WarmView,
    to_document,
)
from cache_agent.api.wire_parsers import parse, parse_json, parse_pull_event
from cache_agent.net.sockets import connect, is_listening
from modelimage import spans, trace_headers
from modelimage.errors import RemoteRefused, Unreachable
from modelimage.reference import LayoutReference, parse_image

# Imported by what asks for a status.
if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from cache_agent.api.node_cache import NodeCache

_TIMEOUT: Final = 600.0  # of silence: an agent on a busy machine answers late, one that hangs never
# For requests that read whole models or the whole store and send nothing until they are done.
_LONG_TIMEOUT: Final = 24 * 3600.0


def absolute_image(text: str) -> str:
    """An image name with the directory of a layout made absolute, for a process elsewhere. Raises InvalidInput."""
    reference = parse_image(text)
    if isinstance(reference, LayoutReference):
        return str(replace(reference, path=reference.path.absolute()))
    return str(reference)


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path, self.timeout)


class AgentClient:
    """A client of one agent. Methods raise the agent's errors, Unreachable when it doesn't answer."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    @classmethod
    def from_socket(cls, path: Path) -> AgentClient | None:
        """A client of the agent at a socket; None when nothing listens there."""
        return cls(path) if is_listening(path) else None

    def pull(self, body: PullBody) -> Generator[PullProgress | PullDone, None, None]:
        """See `Cache.pull`. Closing the iterator closes the connection, which cancels the pull."""
        absolute = replace(body, image=absolute_image(body.image))
        # The short timeout is for silence: progress comes several times a second.
        connection, answer = self._send("POST", "/v1/pull", absolute, timeout=_TIMEOUT)
        try:
            while line := self._read_line(answer):
                event = parse_pull_event(line)
                if isinstance(event, ErrorView):
                    raise from_view(event)
                yield event
                if isinstance(event, PullDone):
                    return
            raise Unreachable("the agent stopped during a pull", hint="Pull again.")
        except ValidationError as error:
            raise RemoteRefused(f"the agent sent an unknown event: {error}") from error
        finally:
            connection.close()

    def models(self) -> list[ModelView]:
        return parse(list[ModelView], self._json("GET", "/v1/models"))

    def find(self, text: str) -> ModelView:
        return parse(ModelView, self._json("GET", f"/v1/model?name={quote(text, safe='')}"))

    def explain(self, text: str) -> list[ExplainView]:
        found = self._json("GET", f"/v1/explain?name={quote(text, safe='')}")
        return parse(list[ExplainView], found)

    def activity(self) -> list[ExplainView]:
        return parse(list[ExplainView], self._json("GET", "/v1/activity"))

    def events(self, after: int = 0) -> list[EventView]:
        return parse(list[EventView], self._json("GET", f"/v1/events?after={after}"))

    def lease(self, body: LeaseBody) -> LeaseView:
        return parse(LeaseView, self._json("POST", "/v1/leases", body))

    def leases(self) -> list[LeaseView]:
        return parse(list[LeaseView], self._json("GET", "/v1/leases"))

    def release(self, lease_id: str) -> bool:
        document = self._json("DELETE", f"/v1/leases/{quote(lease_id, safe='')}")
        return bool(document["released"])

    def pin(self, model: str, *, pinned: bool) -> ModelView:
        body = PinBody(model=model, pinned=pinned)
        return parse(ModelView, self._json("POST", "/v1/pin", body))

    def remove(self, model: str, *, unpin: bool = False) -> RemovedView:
        path = f"/v1/model?name={quote(model, safe='')}&unpin={int(unpin)}"
        return parse(RemovedView, self._json("DELETE", path))

    def gc(self, body: GcBody) -> GcView:
        return parse(GcView, self._json("POST", "/v1/gc", body, timeout=_LONG_TIMEOUT))

    def warm(self, body: WarmBody) -> WarmView:
        document = self._json("POST", "/v1/warm", body, timeout=_LONG_TIMEOUT)
        return parse(WarmView, document)

    def status(self) -> NodeCache:
        from cache_agent.api.node_cache import NodeCache  # noqa: PLC0415

        return NodeCache.model_validate(self._json("GET", "/v1/status"))

    def space(self) -> SpaceReport:
        return parse(SpaceReport, self._json("GET", "/v1/space"))

    def check(self, *, repair: bool = False, quick: bool = False) -> CheckView:
        path = f"/v1/check?repair={int(repair)}&quick={int(quick)}"
        return parse(CheckView, self._json("POST", path, timeout=_LONG_TIMEOUT))

    def _json(
        self,
        method: str,
        path: str,
        body: DataclassInstance | None = None,
        *,
        timeout: float = _TIMEOUT,
    ) -> Any:
        connection, answer = self._send(method, path, body, timeout=timeout)
        try:
            return json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(f"the agent's answer was interrupted: {error}") from error
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: DataclassInstance | None, *, timeout: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = _UnixConnection(self._path, timeout)
        data = json.dumps(to_document(body)).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if data else {}
        parent = spans.traceparent()
        if parent:
            headers[trace_headers.TRACEPARENT] = parent
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            refused = _error(answer.status, answer.read()) if answer.status >= 400 else None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unreachable(
                f"the agent at {self._path} doesn't answer: {error}",
                hint="See its log; start it with `weightyard agent`.",
            ) from error
        if refused is not None:
            connection.close()
            raise from_view(refused)
        return connection, answer

    @staticmethod
    def _read_line(answer: http.client.HTTPResponse) -> bytes:
        try:
            return answer.readline()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"the connection to the agent broke during a pull: {error}", hint="Pull again."
            ) from error


def _error(status: int, data: bytes) -> ErrorView:
    try:
        return parse_json(ErrorView, data)
    except ValidationError:
        return ErrorView(kind="RemoteRefused", message=f"the agent answered with status {status}")
