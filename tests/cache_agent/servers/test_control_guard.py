"""The control API over TCP: not for web pages, not under other names, not without the token."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from cache_agent.api.kube.token_reviews import CallerReview
from cache_agent.net.sockets import listen
from cache_agent.servers.control_guard import guarding, new_token
from cache_agent.servers.listener import serve_control
from tests.cache_agent.api.kube.test_token_reviews import ApiServer

TOKEN = "secret"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}


def application(token: str | None, review: CallerReview | None = None) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="done")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return guarding(app, token, review)


def ask(
    headers: Mapping[str, str],
    *,
    path: str = "/v1/models",
    method: str = "GET",
    body: bytes | None = None,
    token: str | None = TOKEN,
    review: CallerReview | None = None,
) -> int:
    async def main() -> int:
        async with AsyncExitStack() as stack:
            listening = socket.create_server(("127.0.0.1", 0))
            listening.setblocking(False)
            await serve_control(stack, application(token, review), [listening])
            port = listening.getsockname()[1]
            async with (
                aiohttp.ClientSession(skip_auto_headers=("Content-Type",)) as session,
                session.request(
                    method, f"http://127.0.0.1:{port}{path}", headers=headers, data=body
                ) as response,
            ):
                return response.status

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer other"}, 401),
        ({"Authorization": "Bearer s\u00e9cret"}, 401),
        (WITH_TOKEN, 200),
        ({**WITH_TOKEN, "Host": "localhost:1"}, 200),
        ({**WITH_TOKEN, "Host": "[::1]:5"}, 200),
        ({**WITH_TOKEN, "Host": "rebound.example"}, 421),
        ({**WITH_TOKEN, "Host": "127.0.0.1.rebound.example"}, 421),
        ({**WITH_TOKEN, "Host": "[::1"}, 421),
        ({**WITH_TOKEN, "Origin": "https://page.example"}, 403),
        ({**WITH_TOKEN, "Origin": "null"}, 403),
        ({**WITH_TOKEN, "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_who_may_ask(headers: Mapping[str, str], status: int) -> None:
    assert ask(headers) == status


def test_bytes_that_are_no_text_are_no_token() -> None:
    async def main() -> bytes:
        async with AsyncExitStack() as stack:
            listening = socket.create_server(("127.0.0.1", 0))
            listening.setblocking(False)
            await serve_control(stack, application(TOKEN), [listening])
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(
                b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\n\r\n"
            )
            answer = await reader.readline()
            writer.close()
            return answer

    assert asyncio.run(main()).startswith(b"HTTP/1.1 401 ")


def test_without_a_token_of_its_own_nothing_is_answered() -> None:
    assert ask({"Authorization": "Bearer "}, token=None) == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_need_no_token_and_still_come_from_here(path: str) -> None:
    assert ask({}, path=path) == 200
    assert ask({}, path=path, method="POST") == 401
    assert ask({"Host": "rebound.example"}, path=path) == 421


def test_a_form_is_no_request() -> None:
    """A page's form or `fetch` without preflight can send these types only."""
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ):
        headers = {**WITH_TOKEN, "Content-Type": kind}
        assert ask(headers, method="POST", body=b"{}") == 415
    assert ask({**WITH_TOKEN, **JSON}, method="POST", body=b"{}") == 200
    assert ask(WITH_TOKEN, method="DELETE") == 200


@pytest.mark.parametrize("path", ["/page", "/page/", "/page/page.js"])
def test_the_pages_files_need_no_token_and_are_asked_for_by_the_page_itself(path: str) -> None:
    assert ask({}, path=path) == 200
    assert ask({"Sec-Fetch-Site": "same-origin"}, path=path) == 200
    assert ask({"Sec-Fetch-Site": "cross-site"}, path=path) == 403
    assert ask({"Origin": "https://page.example"}, path=path) == 403
    assert ask({"Host": "localhost:5", "Origin": "http://localhost:5"}, path=path) == 200
    assert ask({"Host": "localhost:5", "Origin": "http://localhost:6"}, path=path) == 403
    assert ask({"Host": "localhost:5", "Origin": "null"}, path=path) == 403
    assert ask({"Host": "rebound.example"}, path=path) == 421
    assert ask({}, path=path, method="POST") == 401


def test_what_the_page_shows_needs_the_token() -> None:
    of_page = {"Sec-Fetch-Site": "same-origin"}
    assert ask(of_page, path="/page/events") == 401
    assert ask({**of_page, **WITH_TOKEN}, path="/page/events") == 200
    assert ask({**WITH_TOKEN, "Sec-Fetch-Site": "same-site"}, path="/page/events") == 403
    assert ask({**WITH_TOKEN, "Host": "rebound.example"}, path="/page/events") == 421
    # Nor by a method whose answer comes with a body that it shouldn't have.
    for method in ("HEAD", "OPTIONS", "POST"):
        assert ask(of_page, path="/page/events", method=method) == 401
    # The API server's proxy keeps Authorization to itself, so the page has a header of its own; only for this.
    assert ask({**of_page, "Weightyard-Token": TOKEN}, path="/page/events") == 200
    assert ask({**of_page, "Weightyard-Token": "bad"}, path="/page/events") == 401
    assert ask({"Weightyard-Token": TOKEN}) == 401
    # The page may ask for nothing else.
    assert ask({**of_page, **WITH_TOKEN}, path="/v1/models") == 403


def test_a_token_of_the_cluster_opens_the_pages_events_alone() -> None:
    review = CallerReview(ApiServer(), lambda: 0.0)
    of_ann = {"Authorization": "Bearer good"}
    assert ask(of_ann, path="/page/events", review=review) == 200
    assert ask(of_ann, path="/page/events") == 401
    assert ask(of_ann, path="/v1/models", review=review) == 401
    assert ask(of_ann, path="/page/events", method="POST", review=review) == 401
    assert ask({"Authorization": "Bearer bad"}, path="/page/events", review=review) == 401
    assert ask(WITH_TOKEN, path="/page/events", review=review) == 200
    mere = CallerReview(ApiServer(allowed=("nodecaches",)), lambda: 0.0)
    assert ask(of_ann, path="/page/events", review=mere) == 403


def test_the_unix_socket_is_guarded_by_its_mode_alone(tmp_path: Path) -> None:
    async def main() -> int:
        async with AsyncExitStack() as stack:
            path = tmp_path / "agent.sock"
            await serve_control(stack, application(TOKEN), [listen(path)])
            connector = aiohttp.UnixConnector(str(path))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get("http://whatever/v1/models") as response,
            ):
                return response.status

    assert asyncio.run(main()) == 200


def test_the_tokens_file_is_new_and_its_owners(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    (tmp_path / "agent.token").symlink_to(elsewhere)
    path, token = new_token(tmp_path)
    assert path.read_text() == token
    assert path.stat().st_mode & 0o777 == 0o600
    assert elsewhere.read_text() == ""
    assert new_token(tmp_path)[1] != token
