"""The page in Chromium: its size, its first paint, and its frames while a large cluster changes.

The size counts the files that a browser gets. The first paint is the median over new tabs, on loopback. Frames are
counted by the page's own `requestAnimationFrame` while 20 cells and their nodes change each second.

    python -m benchmarks.page [--nodes 200] [--models 50] [--changes 20] [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from aiohttp import web

from cache_agent.api.page.feed import Feed
from cache_agent.api.page.page_server import PageServer
from cache_agent.api.page.panels import View, difference
from tests.cache_agent.api.page.samples import cluster_view
from tests.servers.chromium import Page, chromium

MOST_BYTES = 200_000
MOST_PAINT_MS = 300
LEAST_FRAMES = 30.0
TABS = 7
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
# Frames and the longest time between two, over some milliseconds.
COUNT = """new Promise((done) => {
  const began = performance.now(); let frames = 0; let last = began; let longest = 0;
  const tick = (now) => {
    frames += 1; longest = Math.max(longest, now - last); last = now;
    if (now - began < %d) requestAnimationFrame(tick); else done([1000 * frames / (now - began), longest]);
  };
  requestAnimationFrame(tick);
})"""


class Changing:
    """A cluster in which some cells change with every look."""

    def __init__(self, nodes: int, models: int, cells: int) -> None:
        self._view, self._cells, self._random = cluster_view(nodes, models), cells, random.Random(1)  # noqa: S311

    async def __call__(self) -> View:
        cells = dict(self._view["cells"])
        nodes = dict(self._view["nodes"])
        for each in self._random.sample(sorted(cells), self._cells):
            cells[each] = {"state": "fetching", "percent": self._random.randrange(100)}
            name = each.rpartition("/")[0]
            nodes[name] = {**nodes[name], "used": self._random.randrange(10**12)}
        self._view = {**self._view, "cells": cells, "nodes": nodes}
        return self._view


@asynccontextmanager
async def served(look: Changing, seconds: float) -> AsyncIterator[str]:
    page = PageServer(look, feed=Feed(look, seconds=seconds))
    app = web.Application()
    app.add_routes(page.routes())
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with page.looking():
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/page/"
    finally:
        await runner.cleanup()


async def frames(page: Page, seconds: float) -> tuple[float, float]:
    """Frames a second, and the longest frame in milliseconds."""
    found = await page.ask(COUNT % int(seconds * 1000))
    return float(found[0]), float(found[1])


async def measure(given: argparse.Namespace) -> bool:
    """Print the numbers; return whether all are within their limits."""
    size = sum(
        len(each.read_bytes()) for each in (files("cache_agent.api.page") / "files").iterdir()
    )
    look = Changing(given.nodes, given.models, 1)
    # One change a look: as many looks as changes, each an event of its own.
    with tempfile.TemporaryDirectory() as directory:
        async with served(look, 1 / given.changes) as url, chromium(Path(directory)) as browser:
            paints = []
            for _ in range(TABS):
                page = await browser.page()
                await page.go(url)
                await page.wait(f"({PAINT}) > 0")
                paints.append(float(await page.ask(PAINT)))
                await page.call("Page.close")
            page = await browser.page()
            began = time.monotonic()
            await page.go(url)
            await page.wait("document.querySelectorAll('#map-scroll [role=gridcell]').length > 0")
            whole = time.monotonic() - began
            # In sight: what isn't is not drawn.
            await page.ask("document.getElementById('map').scrollIntoView()")
            still = await frames(page, 2)
            rate, longest = await frames(page, given.seconds)
            assert not page.errors, page.errors
    before = await look()
    began = time.perf_counter()
    difference(before, await look())
    took = time.perf_counter() - began
    paint = statistics.median(paints)
    print(f"files: {size / 1000:.1f} kB (limit {MOST_BYTES / 1000:.0f})")
    print(
        f"first paint: median {paint:.0f} ms, range {min(paints):.0f} to {max(paints):.0f} (limit {MOST_PAINT_MS})"
    )
    print(f"{given.nodes} nodes by {given.models} models drawn after {whole:.2f} s")
    print(
        f"frames at {given.changes} changes a second: {rate:.1f} a second, longest {longest:.0f} ms"
    )
    print(
        f"frames at first, for 2 s: {still[0]:.1f} a second; a look and its difference: {1000 * took:.1f} ms"
    )
    return size < MOST_BYTES and paint < MOST_PAINT_MS and rate > LEAST_FRAMES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--changes", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=10)
    return 0 if asyncio.run(measure(parser.parse_args())) else 1


if __name__ == "__main__":
    sys.exit(main())
