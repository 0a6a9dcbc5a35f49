"""A registry that repeats in its errors what it was sent: credentials, too. Some proxies and gateways do."""

from __future__ import annotations

import json
from typing import Any, cast

from tests.servers.httpserver import Handler, LoopbackServer

SIGNATURE = "X-Amz-Signature=5ec3e7516aa7be"


class _Handler(Handler):
    def do_GET(self) -> None:
        owner = cast("RepeatingRegistry", cast("Any", self.server).owner)
        owner.heard.append(self.headers.get("Authorization", ""))
        if "Authorization" not in self.headers and not self.path.startswith("/signed"):
            self.answer(401, b"{}", {"WWW-Authenticate": 'Basic realm="r"'})
            return
        if owner.redirects and not self.path.startswith("/signed"):
            self.answer(307, b"", {"Location": f"{owner.url}/signed{self.path}?{SIGNATURE}"})
            return
        said = f"refused: {self.path} {dict(self.headers)}"
        body = {"errors": [{"code": "DENIED", "message": said, "detail": said}]}
        self.answer(
            owner.status, json.dumps(body).encode(), {"X-Said": said[:500].replace("\n", " ")}
        )

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the base class's names


class RepeatingRegistry(LoopbackServer):
    """Answers every request with an error that repeats it. `heard` are the credentials that it got."""

    HANDLER = _Handler

    def __init__(self, status: int = 403, *, redirects: bool = False) -> None:
        self.status, self.redirects = status, redirects
        self.heard: list[str] = []
