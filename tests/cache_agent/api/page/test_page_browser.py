"""The page in Chromium for everybody: readable in every light, by keyboard, by ear, on a telephone, behind a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cache_agent.api.page.feed import Feed
from cache_agent.api.page.page_server import EVENTS, PageServer
from cache_agent.api.page.view import View
from tests.cache_agent.api.page import samples
from tests.servers.chromium import Page, chromium

pytestmark = pytest.mark.servers
TOKEN = "right"
# As the API server's proxy and an Ingress put before it.
PREFIX = "/api/v1/namespaces/weightyard/services/http:weightyard-page:80/proxy"
CELLS = "document.querySelectorAll('#map-scroll [role=gridcell]').length"
LIVE = "document.getElementById('state').textContent === 'Live'"
# Texts whose contrast with what is behind them is less than WCAG asks for, 4.5.
PALE = """(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
    .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
    .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const found = parts(getComputedStyle(each).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const hidden = !element.checkVisibility() || ['SCRIPT', 'NOSCRIPT'].includes(element.tagName);
    if (hidden || !walker.currentNode.data.trim()) continue;
    const [one, other] = [light(parts(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) found.push([walker.currentNode.data.trim().slice(0, 40), contrast]);
  }
  return found;
})()"""


class Site:
    """A page of a view that a test changes, for those with the token. `open`: whether it answers."""

    def __init__(self, view: View) -> None:
        self.view, self.open = view, True
        self.page = PageServer(self, feed=Feed(self, seconds=0.02))
        self.url = ""

    async def __call__(self) -> View:
        return self.view

    @web.middleware
    async def guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path == EVENTS and not self.open:
            return web.json_response({"error": "it is being replaced"}, status=503)
        if request.path == EVENTS and request.headers.get("Weightyard-Token") != TOKEN:
            return web.json_response({"error": "nobody knows it"}, status=401)
        return await handler(request)

    async def lose(self) -> None:
        """Answer nobody any more, and end all streams."""
        self.open = False
        for reader in tuple(self.page._feed._readers):
            reader._drop()


@asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def visit(
    directory: Path, view: View, person: Callable[[Site, Page], Awaitable[None]], *, proxied: bool = False
) -> Page:  # fmt: skip
    """Let a person with a browser look at a view; gives the page as it was left."""

    async def main() -> Page:
        site = Site(view)
        app = web.Application(middlewares=[site.guard])
        app.add_routes(site.page.routes())
        async with site.page.looking(), running(app) as url, chromium(directory) as browser:
            site.url = f"{url}/page/"
            page = await browser.page()
            if proxied:
                async with running(proxy_of(url)) as before:
                    site.url = f"{before}{PREFIX}/page/"
                    await person(site, page)
            else:
                await person(site, page)
            return page

    return asyncio.run(main())


def proxy_of(url: str) -> web.Application:
    """A proxy as an API server's: below a path, and the caller's Authorization is for itself."""

    async def forward(request: web.Request) -> web.StreamResponse:
        path = request.raw_path.removeprefix(PREFIX) or "/"
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in ("Host", "Authorization")
        }
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.get(url + path, headers=headers, allow_redirects=False) as answer,
        ):
            given = {
                name: value for name, value in answer.headers.items() if name != "Transfer-Encoding"
            }
            own = web.StreamResponse(status=answer.status, headers=given)
            await own.prepare(request)
            async for piece in answer.content.iter_any():
                await own.write(piece)
            return own

    app = web.Application()
    app.router.add_get(PREFIX + "{path:.*}", forward)
    return app


async def sign_in(site: Site, page: Page) -> None:
    await page.go(f"{site.url}#token={TOKEN}")
    await page.wait(LIVE)
    await page.wait(f"{CELLS} > 0")


def long_names() -> View:
    """Names without a place to break, as long as they may be."""
    view = samples.cluster_view(3, 4)
    name = "x" * 253
    row = samples.workspace(
        name, space="y" * 63, why="z" * 500, rollout=samples.rollout(reason="w" * 100)
    )
    view["workspaces"] = {f"{'y' * 63}/{name}": row}
    view["problems"] = {"1": {"where": name, "what": "v" * 300}}
    for move in view["moves"].values():
        move |= {"what": name, "node": name, "sources": [f"registry {name}"]}
    for each in view["nodes"].values():
        each["name"] = name
    return view


async def every_look(
    page: Page, check: Callable[[], Awaitable[None]], widths: tuple[int, ...] = (1280, 360)
) -> None:
    for width in widths:
        for dark in (False, True):
            await page.look_like(width=width, dark=dark)
            await check()


def test_every_text_stands_out_in_every_light_and_nothing_is_wider_than_a_telephone(
    tmp_path: Path,
) -> None:
    async def person(site: Site, page: Page) -> None:
        async def check() -> None:
            assert await page.ask(PALE) == []
            width = await page.ask("innerWidth")
            assert await page.ask("document.documentElement.scrollWidth") <= width
            assert await page.ask("document.body.scrollWidth") <= width

        await page.go(f"{site.url}#token=wrong")
        await page.wait(
            "document.getElementById('entry-why').textContent.includes('nobody knows it')"
        )
        await every_look(page, check)
        await page.type(TOKEN)
        await page.press("Enter")
        await page.wait(f"{LIVE} && {CELLS} > 0")
        await every_look(page, check)
        await page.ask("document.querySelector('#server-rows button').click()")
        site.view = long_names()
        await page.wait("document.body.textContent.includes('xxxx')")
        await every_look(page, check)
        await site.lose()
        await page.wait("document.getElementById('state').dataset.state === 'lost'")
        await every_look(page, check)
        # The check itself finds what is too pale.
        await page.ask("document.getElementById('place').style.color = '#7f7f7f'")
        assert len(await page.ask(PALE)) == 1

    visit(tmp_path, samples.cluster_view(4, 7), person)


def test_a_rollout_is_told_with_both_values_of_each_measure_and_the_way_back(
    tmp_path: Path,
) -> None:
    async def person(site: Site, page: Page) -> None:
        await sign_in(site, page)
        row = "[...document.querySelectorAll('#server-rows tr')].find((each) => each.textContent.includes('/roll'))"
        assert "4 to 5, step 2 of 3, 25 % of the requests, 10 % wanted" in await page.ask(
            f"{row}.textContent"
        )
        await page.ask(f"{row}.querySelector('button').click()")
        await page.wait("document.activeElement.id === 'why-title'")
        said = await page.ask("document.getElementById('why').innerText")
        for each in ("is up; version 5 is rolled out", "canary", "Both versions are compared for 300 s.",
                     "weightyard rollout abort roll -n team-a"):  # fmt: skip
            assert each in said
        spoken = await page.spoken()
        for each in (
            ("columnheader", "Version 4"), ("columnheader", "Version 5"), ("cell", "1.9"), ("cell", "worse"),
            ("list", "Steps of the rollout"), ("list", "What you can do"),
        ):  # fmt: skip
            assert each in spoken

    page = visit(tmp_path, samples.cluster_view(4, 7), person)
    assert page.errors == []


def test_a_flood_of_changes_is_not_read_out(tmp_path: Path) -> None:
    """Only the connection and, now and then, the number of problems are told by themselves."""
    told = """(() => {
      window.told = [];
      const live = [...document.querySelectorAll('[aria-live], [role=status], [role=alert], [role=log]')];
      for (const each of live) {
        new MutationObserver(() => window.told.push(each.id + ': ' + each.textContent))
          .observe(each, { childList: true, characterData: true, subtree: true });
      }
      return live.map((each) => each.id);
    })()"""

    async def person(site: Site, page: Page) -> None:
        await sign_in(site, page)
        assert await page.ask(told) == ["state", "news"]
        await page.ask("document.querySelector('#map-scroll [role=gridcell]').focus()")
        for percent in range(1, 30):
            cells = {**site.view["cells"]}
            cells["gpu-000/" + next(iter(site.view["models"]))] = {
                "state": "fetching",
                "percent": percent,
            }
            problems = {f"p{each}": {"where": "n", "what": f"{each}"} for each in range(percent)}
            site.view = {**site.view, "cells": cells, "problems": problems}
            await page.wait(
                f"document.getElementById('map-detail').textContent.includes('{percent}% fetched')"
            )
        assert await page.ask("window.told") == []
        # The chosen cell is described by the line that says more about it.
        described = "document.getElementById(document.activeElement.getAttribute('aria-describedby')).textContent"
        assert "29% fetched" in await page.ask(described)

    visit(tmp_path, samples.cluster_view(4, 7), person)


def test_by_keyboard_everything_is_reached_in_the_order_of_the_page(tmp_path: Path) -> None:
    here = "document.activeElement.closest('section')?.id ?? document.activeElement.className"

    async def person(site: Site, page: Page) -> None:
        await sign_in(site, page)
        await page.ask("document.body.focus()")
        order = []
        for _ in range(60):
            await page.press("Tab")
            order.append(await page.ask(here))
            if order[-1] == "moves":
                break
        sections = list(dict.fromkeys(order))
        assert sections == ["skip", "problems", "servers", "map", "moves"]
        # The map is one stop: its cells are reached by arrows. Its box scrolls, so browsers stop there too.
        assert order.count("map") <= 2
        more = "document.getElementById('moves-more')"
        assert (
            await page.ask(
                f"document.activeElement === {more} && {more}.getAttribute('aria-expanded')"
            )
            == "false"
        )
        few = await page.ask("document.querySelectorAll('#move-rows tr').length")
        await page.press("Enter")
        await page.wait(f"document.querySelectorAll('#move-rows tr').length > {few}")
        assert await page.ask(f"{more}.getAttribute('aria-expanded')") == "true"

    visit(tmp_path, samples.cluster_view(12, 20), person)


def test_it_is_live_again_by_itself_and_says_so_meanwhile(tmp_path: Path) -> None:
    async def person(site: Site, page: Page) -> None:
        await sign_in(site, page)
        await site.lose()
        await page.wait("document.getElementById('state').textContent.includes('Trying again in')")
        # What was seen last stays, and is marked as such by the state.
        assert await page.ask(f"{CELLS} > 0")
        site.view = samples.cluster_view(1, 1)
        site.open = True
        await page.wait(LIVE)
        await page.wait(f"{CELLS} === 1")

    visit(tmp_path, samples.cluster_view(2, 3), person)


def test_an_empty_cluster_says_what_is_missing(tmp_path: Path) -> None:
    empty: Any = {"about": {"": {"kind": "cluster", "name": "cluster"}}}

    async def person(site: Site, page: Page) -> None:
        await page.go(f"{site.url}#token={TOKEN}")
        await page.wait(
            "document.getElementById('map-none').textContent.includes('No agent has reported yet')"
        )
        assert await page.ask("document.getElementById('problems-none').checkVisibility()")

    visit(tmp_path, empty, person)


@pytest.mark.parametrize("end", ["", "page", "page/"])
def test_it_works_below_a_proxys_path_that_keeps_authorization_to_itself(
    tmp_path: Path, end: str
) -> None:
    async def person(site: Site, page: Page) -> None:
        await page.go(site.url.removesuffix("page/") + "page" + end.removeprefix("page"))
        await page.wait("!document.getElementById('entry').hidden")
        page.errors.clear()  # the browser tells of the 401
        await page.type(TOKEN)
        await page.press("Enter")
        await page.wait(LIVE)
        await page.wait(f"{CELLS} > 0")
        before = site.url.partition("/api/")[0] + PREFIX
        assert all(each.startswith(before) for each in page.requests)

    page = visit(tmp_path, samples.cluster_view(2, 3), person, proxied=True)
    assert page.errors == []
