"""A small Kubernetes API client: requests, lists and watches. Raises Weightyard's errors.

Must not depend on models. kubernetes-asyncio would take 38 MB of memory for the same calls.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

import aiohttp

from cache_agent.api.kube.connection import Connection, probed_socket
from cache_agent.api.kube.refusals import Gone, refuse
from modelimage.bounds import parse_count
from modelimage.errors import Unreachable, first_line

Json = dict[str, Any]

# Between two bytes, not for the whole: a large list may take longer on a busy machine.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=10, sock_read=60)
# A watch is silent while nothing changes, so its read timeout exceeds the time after which the server ends it.
WATCH_SECONDS: Final = 290
_WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=10, sock_read=WATCH_SECONDS + 30)
_LIST_LIMIT: Final = 500
APPLY_PATCH: Final = "application/apply-patch+yaml"
_MERGE_PATCH: Final = "application/merge-patch+json"
# Room for an object of etcd's largest size in a watch event.
_LINE_BYTES: Final = 8 << 20
# How often a request is repeated that the server put off, and the longest pause in seconds that it may ask for.
_PUT_OFF_TIMES: Final = 5
_LONGEST_PAUSE: Final = 10


class KubeClient:
    """A client of one API server. A context manager that owns one connection pool.

    `role` owns the ClusterRole that errors name. `sleep` is injected for tests.
    """

    def __init__(
        self, connection: Connection, *, role: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._role = role
        self._sleep = sleep
        self.namespace = connection.namespace

    async def __aenter__(self) -> KubeClient:
        # A watch event is one line, and aiohttp bounds the length of lines by the read buffer. Watches hold
        # connections, so their number isn't limited; requests are limited by their callers.
        connector = aiohttp.TCPConnector(limit=0, socket_factory=probed_socket)
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=_LINE_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str) -> Json:
        """Get one object. Raises NotFound."""
        return await self.call("GET", path)

    async def create(self, path: str, document: Json) -> Json:
        """Create an object. Raises Conflict when it exists."""
        return await self.call("POST", path, document)

    async def patch(self, path: str, document: Json | str) -> Json:
        """Merge-patch an object; a str is JSON. With a resourceVersion, raises Conflict when the object has changed."""
        return await self.call("PATCH", path, document, content_type=_MERGE_PATCH)

    async def list_all(self, path: str, query: Mapping[str, str]) -> tuple[list[Json], str]:
        """List all objects, in pages; return them and the resourceVersion to watch from.

        They are those of one moment: raises Gone when the server forgot it before the last page.
        """
        found: list[Json] = []
        version = ""
        async for items, page_version in self._pages(path, query):
            found += items
            version = page_version
        return found, version

    async def pages(
        self, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[tuple[list[Json], str]]:
        """List all objects page by page, each with the list's resourceVersion.

        When the server has forgotten that version, the other pages show a later moment.
        """
        page = ""
        while True:
            try:
                async for items, version in self._pages(path, query, page):
                    yield items, version
            except Gone as error:
                if not error.rest or error.rest == page:
                    raise
                page = error.rest
            else:
                return

    async def _pages(
        self, path: str, query: Mapping[str, str], page: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]:
        while True:
            asked = {**query, "limit": str(_LIST_LIMIT), **({"continue": page} if page else {})}
            answer = await self.call("GET", path, query=asked)
            metadata = answer.get("metadata") or {}
            yield answer.get("items") or [], str(metadata.get("resourceVersion", ""))
            page = metadata.get("continue") or ""
            if not page:
                return

    async def watch(
        self, path: str, query: Mapping[str, str], version: str, *,
        opened: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[tuple[str, Json]]:  # fmt: skip
        """Yield changes since a version, as (type, object), until the server ends the watch. Raises Gone.

        `opened` is called when the server accepts the watch; the first change may come much later.
        """
        asked = {
            "timeoutSeconds": str(WATCH_SECONDS), **query, "watch": "true", "resourceVersion": version,
            "allowWatchBookmarks": "true",
        }  # fmt: skip
        call = f"watch {path}"
        try:
            async with self._session.get(
                self._connection.server + path,
                params=asked,
                timeout=_WATCH_TIMEOUT,
                headers=await self._headers(),
                **self._transport(),
            ) as answer:
                if answer.status == HTTPStatus.UNAUTHORIZED:
                    self._connection.credentials.refused()
                if answer.status >= HTTPStatus.BAD_REQUEST:
                    self._refuse(answer.status, await answer.text(), call, answer.headers)
                opened()
                async for line in answer.content:
                    if line.strip():
                        yield self._event(line, call)
        except (
            aiohttp.ClientError,
            TimeoutError,
            asyncio.IncompleteReadError,
            ValueError,
        ) as error:
            raise Unreachable(
                f"the connection to the API server was lost during {call}: {_reason(error)}"
            ) from error

    async def call(
        self, method: str, path: str, body: Json | str | None = None, *,
        content_type: str = "application/json", query: Mapping[str, str] | None = None,
    ) -> Json:  # fmt: skip
        """One request; returns the response's object. A str is sent as it is. Raises what `refuse` raises.

        What the server puts off for some seconds (429 or 503 with Retry-After) is repeated a few times.
        """
        data = json.dumps(body) if isinstance(body, dict) else body
        text = await self._answer(method, path, data, content_type, query)
        try:
            found = json.loads(text)
        except ValueError as error:  # a proxy or load balancer may return a page that isn't JSON
            call = f"{method} {path}"
            raise Unreachable(f"the API server's answer to {call} isn't JSON: {error}") from error
        return found if isinstance(found, dict) else {}

    async def text(self, path: str, query: Mapping[str, str]) -> str:
        """Get a subresource that is text, such as a pod's log. Raises what `refuse` raises."""
        return await self._answer("GET", path, None, "", query)

    async def _answer(
        self, method: str, path: str, data: str | None, content_type: str,
        query: Mapping[str, str] | None,
    ) -> str:  # fmt: skip
        """The text of a request's response, whose status isn't an error."""
        status, text, headers = await self._send(method, path, data, content_type, query)
        if status == HTTPStatus.UNAUTHORIZED:
            # A token may have been rotated or revoked since it was read; a second refusal is final.
            self._connection.credentials.refused()
            status, text, headers = await self._send(method, path, data, content_type, query)
        for _ in range(_PUT_OFF_TIMES):
            pause = _pause(status, headers)
            if pause is None:
                break
            await self._sleep(pause)
            status, text, headers = await self._send(method, path, data, content_type, query)
        if status >= HTTPStatus.BAD_REQUEST:
            self._refuse(status, text, f"{method} {path}", headers)
        return text

    async def _send(
        self, method: str, path: str, data: str | None, content_type: str,
        query: Mapping[str, str] | None,
    ) -> tuple[int, str, Mapping[str, str]]:  # fmt: skip
        headers = await self._headers()
        if data is not None:
            headers.append(("Content-Type", content_type))
        try:
            async with self._session.request(
                method,
                self._connection.server + path,
                params=query,
                headers=headers,
                data=data,
                timeout=_TIMEOUT,
                **self._transport(),
            ) as answer:
                return answer.status, await answer.text(), answer.headers
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(
                f"the API server at {self._connection.server} doesn't answer {method} {path}: {_reason(error)}"
            ) from error

    async def _headers(self) -> list[tuple[str, str]]:
        """Pairs, because Impersonate-Group may occur several times."""
        found = await self._connection.credentials.headers()
        return [*found.items(), ("Accept", "application/json"), *self._connection.impersonate]

    def _transport(self) -> dict[str, Any]:
        """TLS and proxy of a request. Contexts are kept by the credentials: each one costs megabytes."""
        found: dict[str, Any] = {"ssl": self._connection.credentials.tls() or True}
        if self._connection.proxy:
            found["proxy"] = self._connection.proxy
        if self._connection.server_name:
            found["server_hostname"] = self._connection.server_name
        return found

    def _event(self, line: bytes, call: str) -> tuple[str, Json]:
        event = json.loads(line)
        kind, found = str(event["type"]), event["object"]
        # A watch has sent its status 200 already, so errors such as an expired version (410) arrive as events.
        if kind == "ERROR":
            self._refuse(int(found.get("code") or 500), json.dumps(found), call, {})
        return kind, found

    def _refuse(self, status: int, text: str, call: str, headers: Mapping[str, str]) -> NoReturn:
        refuse(status, text, call, role=self._role, retry_after=headers.get("Retry-After"))


def _pause(status: int, headers: Mapping[str, str]) -> int | None:
    """Seconds until the server accepts the request that it didn't carry out; None for every other answer."""
    if status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return None
    return parse_count(headers.get("Retry-After"), most=_LONGEST_PAUSE)


def _reason(error: Exception) -> str:
    """A transport error in words. aiohttp's own texts repeat the address and show the TLS context's."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return first_line(error.certificate_error)
    return first_line(error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error)
