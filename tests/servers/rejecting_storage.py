"""An object store behind a registry, which refuses credentials that are not its own."""

from __future__ import annotations

import http.client
from typing import Any, cast
from urllib.parse import urlsplit

from tests.servers.httpserver import Handler, LoopbackServer


class _StorageHandler(Handler):
    def do_GET(self) -> None:
        storage = cast("RejectingStorage", cast("Any", self.server).owner)
        if "Authorization" in self.headers:
            self.answer(400, b"only one auth mechanism allowed")
            return
        upstream = http.client.HTTPConnection(storage.upstream)
        try:
            headers = {name: value for name, value in self.headers.items() if name == "Range"}
            headers |= storage.credentials
            upstream.request("GET", urlsplit(self.path).path, None, headers)
            answer = upstream.getresponse()
            kept = ("Content-Range", "Content-Type")
            found = {name: value for name, value in answer.getheaders() if name in kept}
            self.answer(answer.status, answer.read(), found)
        finally:
            upstream.close()


class RejectingStorage(LoopbackServer):
    """An object store with signed URLs, on an origin of its own, that fetches from the registry at `upstream`."""

    HANDLER = _StorageHandler

    def __init__(self, upstream: str, credentials: dict[str, str] | None = None) -> None:
        self.upstream = upstream
        self.credentials = credentials or {}
