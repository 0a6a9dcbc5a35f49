"""The few calls to a Kubernetes API server that an agent makes, with its errors as ours.

Knows paths and status codes, nothing of models. kubernetes-asyncio would bring 38 MB of memory for them.
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
# A watch says nothing for long while nothing changes; servers end it after the time asked for.
WATCH_SECONDS: Final = 290
_WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=10, sock_read=WATCH_SECONDS + 30)
_LIST_LIMIT: Final = 500
# One object of etcd's largest size fits, and so does what watching adds.
_LINE_BYTES: Final = 8 << 20


class Api:
    """One API server. A context manager that holds its connections."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.namespace = connection.namespace

    async def __aenter__(self) -> Api:
        connector = aiohttp.TCPConnector(ssl=self._connection.tls or True, limit=8)
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=_LINE_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str) -> Json:
        """One object. Raises NotFound."""
        return await self._call("GET", path)

    async def create(self, path: str, document: Json) -> Json:
        """A new object. Raises Conflict when it is there."""
        return await self._call("POST", path, document)

    async def patch(self, path: str, document: Json | str) -> Json:
        """Merge into an object; a text is JSON. With a resourceVersion, raises Conflict when it changed since."""
        return await self._call("PATCH", path, document, kind="application/merge-patch+json")

    async def list(self, path: str, query: Mapping[str, str]) -> tuple[list[Json], str]:
        """All objects, page by page, and the resourceVersion from which to watch. Raises Gone."""
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
        """Changes since a version, as (type, object), until the server ends the watch. Raises Gone."""
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
    if kind == "ERROR":
        _refuse(int(found.get("code") or 500), json.dumps(found), call, {})
    return kind, found


def _refuse(status: int, text: str, call: str, headers: Mapping[str, str]) -> NoReturn:
    refuse(status, text, call, role="agent", retry_after=headers.get("Retry-After"))
