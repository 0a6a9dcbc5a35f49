"""A small Kubernetes API client with the calls that an agent makes. Raises Weightyard's errors.

Must not depend on models. kubernetes-asyncio would take 38 MB of memory for the same calls.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

import aiohttp

from cache_agent.api.refusals import refuse
from cache_agent.prewarm.cluster.connection import Connection
from modelimage.errors import Unreachable

Json = dict[str, Any]

_TIMEOUT: Final = aiohttp.ClientTimeout(total=60, connect=10)
# A watch is silent while nothing changes, so its read timeout exceeds the time after which the server ends it.
WATCH_SECONDS: Final = 290
_WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=10, sock_read=WATCH_SECONDS + 30)
_LIST_LIMIT: Final = 500
# Room for an object of etcd's largest size in a watch event.
_LINE_BYTES: Final = 8 << 20


class Api:
    """A client of one API server. A context manager that owns its connections."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.namespace = connection.namespace

    async def __aenter__(self) -> Api:
        # A watch event is one line, and aiohttp bounds the length of lines by the read buffer.
        connector = aiohttp.TCPConnector(ssl=self._connection.tls or True, limit=8)
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=_LINE_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str) -> Json:
        """Get one object. Raises NotFound."""
        return await self._call("GET", path)

    async def create(self, path: str, document: Json) -> Json:
        """Create an object. Raises Conflict when it exists."""
        return await self._call("POST", path, document)

    async def patch(self, path: str, document: Json | str) -> Json:
        """Merge-patch an object; a str is JSON. With a resourceVersion, raises Conflict when the object has changed."""
        return await self._call("PATCH", path, document, kind="application/merge-patch+json")

    async def list(self, path: str, query: Mapping[str, str]) -> tuple[list[Json], str]:
        """List all objects, in pages; return them and the resourceVersion to watch from. Raises Gone."""
        found: list[Json] = []
        page = ""
        while True:
            asked = {**query, "limit": str(_LIST_LIMIT), **({"continue": page} if page else {})}
            answer = await self._call("GET", path, query=asked)
            metadata = answer.get("metadata") or {}
            found += answer.get("items") or []
            page = metadata.get("continue") or ""
            if not page:
                return found, str(metadata.get("resourceVersion", ""))

    async def watch(
        self, path: str, query: Mapping[str, str], version: str
    ) -> AsyncIterator[tuple[str, Json]]:
        """Yield changes since a version, as (type, object), until the server ends the watch. Raises Gone."""
        asked = {
            **query, "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }  # fmt: skip
        call = f"watch {path}"
        try:
            async with self._session.get(
                self._connection.server + path, params=asked, timeout=_WATCH_TIMEOUT,
                headers={**self._connection.headers(), "Accept": "application/json"},
            ) as answer:  # fmt: skip
                if answer.status >= HTTPStatus.BAD_REQUEST:
                    _refuse(answer.status, await answer.text(), call, answer.headers)
                async for line in answer.content:
                    if line.strip():
                        yield _event(line, call)
        except (
            aiohttp.ClientError,
            TimeoutError,
            asyncio.IncompleteReadError,
            ValueError,
        ) as error:
            raise Unreachable(f"the API server broke off {call}: {error!r}") from error

    async def _call(
        self, method: str, path: str, body: Json | str | None = None, *,
        kind: str = "application/json", query: Mapping[str, str] | None = None,
    ) -> Json:  # fmt: skip
        headers = {**self._connection.headers(), "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = kind
        call = f"{method} {path}"
        try:
            async with self._session.request(
                method, self._connection.server + path, params=query, headers=headers,
                data=json.dumps(body) if isinstance(body, dict) else body, timeout=_TIMEOUT,
            ) as answer:  # fmt: skip
                text = await answer.text()
                if answer.status >= HTTPStatus.BAD_REQUEST:
                    _refuse(answer.status, text, call, answer.headers)
                found = json.loads(text)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"the API server doesn't answer {call}: {error!r}") from error
        return found if isinstance(found, dict) else {}


def _event(line: bytes, call: str) -> tuple[str, Json]:
    event = json.loads(line)
    kind, found = str(event["type"]), event["object"]
    # A watch has sent its status 200 already, so errors such as an expired version (410) arrive as events.
    if kind == "ERROR":
        _refuse(int(found.get("code") or 500), json.dumps(found), call, {})
    return kind, found


def _refuse(status: int, text: str, call: str, headers: Mapping[str, str]) -> NoReturn:
    refuse(status, text, call, role="agent", retry_after=headers.get("Retry-After"))
