"""Who may use the control API over TCP. A unix socket has a mode; a loopback port is open to every process and browser.

A web page can make its reader's browser send requests to 127.0.0.1, by a name that resolves there too (DNS rebinding).
So over TCP the host must be this machine's, no request may come from a page, and all but probes need the token. The
agent's own page may ask for its events alone: with the token, or in a cluster with one that the API server admits.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from cache_agent.api.kube.token_reviews import CallerReview
from cache_agent.api.page.guard import refusal_of_review, token_of
from cache_agent.api.page.page_server import EVENTS, PREFIX
from modelimage.errors import NotWritable

TOKEN_NAME: Final = "agent.token"  # noqa: S105 - the name of a file
_OPEN: Final = frozenset({"/livez", "/readyz", "/metrics"})
_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_JSON: Final = "application/json"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def new_token(directory: Path) -> tuple[Path, str]:
    """Write a new token to a file that only this user can read; return both. Raises NotWritable."""
    path, token = directory / TOKEN_NAME, secrets.token_urlsafe(32)
    try:
        path.unlink(missing_ok=True)
        # Created with its mode: nobody can open it before.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
    except OSError as error:
        raise NotWritable(f"can't write {path}: {error.strerror}") from error
    return path, token


def guarding(
    app: web.Application, token: str | None, review: CallerReview | None = None
) -> web.Application:
    """Add the guard. Without a token nothing but probes and the page's files is answered over TCP.

    `review` judges other bearer tokens, for the page's events alone.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = refusal(request, token) if _over_tcp(request) else None
        asks_events = _is_events(request) and request.method == "GET"
        if refused is not None and refused[0] == 401 and review is not None and asks_events:
            refused = await refusal_of_review(review, request)
        if refused is not None:
            return web.json_response({"error": refused[1]}, status=refused[0])
        return await handler(request)

    app.middlewares.insert(0, guard)
    return app


def refusal(request: web.Request, token: str | None) -> tuple[int, str] | None:
    """The status and the reason for a request over TCP that may not be answered; None for one that may."""
    if _host(request.headers.get("Host", "")) not in _HOSTS:
        return 421, "the host isn't this machine"
    of_page = f"{request.path}/".startswith(PREFIX)
    if not _is_from_no_page(request) and not (of_page and _is_from_own_page(request)):
        return 403, "web pages may not use this API"
    is_open = request.path in _OPEN or (of_page and not _is_events(request))
    if is_open and request.method in ("GET", "HEAD"):
        return None
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if _is_events(request):
        given = token_of(request)
    if token is None or not hmac.compare_digest(
        given.encode("utf-8", "surrogateescape"), token.encode()
    ):
        return (
            401,
            f"give the token in {TOKEN_NAME} of the cache's directory: Authorization: Bearer TOKEN",
        )
    # A form can be sent by any page without a question to this server.
    if request.can_read_body and request.content_type != _JSON:
        return 415, f"the body must be {_JSON}"
    return None


def _is_from_no_page(request: web.Request) -> bool:
    """Whether a person's address bar or a program asks."""
    return "Origin" not in request.headers and request.headers.get("Sec-Fetch-Site") in (
        None,
        "none",
    )


def _is_from_own_page(request: web.Request) -> bool:
    """Whether a page of this very address asks: of this host, whose name was checked, and this port."""
    # Browsers name the origin for modules also where it is the same.
    own = f"http://{request.headers.get('Host', '')}"
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    return request.headers.get("Origin", own) == own and site in ("none", "same-origin")


def _is_events(request: web.Request) -> bool:
    # Whatever the method: what answers GET also answers HEAD unless it is told not to.
    return request.path == EVENTS


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _over_tcp(request: web.Request) -> bool:
    connection = request.transport.get_extra_info("socket") if request.transport else None
    return connection is None or connection.family != socket.AF_UNIX
