"""The page in Chromium: its size, its first paint, and its frames while a large cluster changes.

The size counts the files that a browser gets. The first paint is the median over new tabs, on loopback, beside that of
an empty page, which is the browser's own part. Frames are counted by the page's own `requestAnimationFrame` while 20
cells and their nodes change each second. On a busy machine others take the frames away, so the CPU time that the page's
process spends on a frame is told too: up to 16 ms leave room for 30 frames a second, and count as such.

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
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from aiohttp import web

from cache_agent.api.page.feed import Feed
from cache_agent.api.page.page_server import PREFIX, PageServer
from cache_agent.api.page.view import View, difference
from tests.cache_agent.api.page.samples import cluster_view
from tests.servers.chromium import Browser, Page, chromium

MOST_BYTES = 200_000
MOST_PAINT_MS = 300
LEAST_FRAMES = 30.0
EMPTY = "empty"
MOST_FRAME_CPU_MS = 16.0
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


@dataclass(frozen=True)
class Cpu:
    """Seconds of CPU time that a tab has taken: of the thread that runs the page, and of its whole process."""

    main: float
    process: float

    def since(self, before: Cpu) -> Cpu:
        return Cpu(self.main - before.main, self.process - before.process)

    def each(self, count: float) -> str:
        """In words, for each of `count` things."""
        return f"{1000 * self.process / count:.1f} ms of CPU, {1000 * self.main / count:.1f} of them on the main thread"


async def cpu(page: Page) -> Cpu:
    found = (await page.call("Performance.getMetrics"))["metrics"]
    by_name = {each["name"]: each["value"] for each in found}
    return Cpu(by_name["ThreadTime"], by_name["ProcessTime"])


@dataclass(frozen=True)
class Frames:
    """Frames a second, the longest time between two in milliseconds, how many there were, and what they cost."""

    rate: float
    longest: float
    count: float
    cpu: Cpu


class Changing:
    """A cluster in which some cells change with every look."""

    def __init__(self, nodes: int, models: int, cells: int) -> None:
        self._view, self._cells, self._random = cluster_view(nodes, models), cells, random.Random(1)  # noqa: S311
        self.looks = 0

    async def __call__(self) -> View:
        self.looks += 1
        cells = dict(self._view["cells"])
        nodes = dict(self._view["nodes"])
        for each in self._random.sample(sorted(cells), self._cells):
            cells[each] = {"state": "fetching", "percent": self._random.randrange(100)}
            name = each.rpartition("/")[0]
            nodes[name] = {**nodes[name], "used": self._random.randrange(10**12)}
        self._view = {**self._view, "cells": cells, "nodes": nodes}
        return self._view


async def empty_page(_: web.Request) -> web.Response:
    return web.Response(
        text="<!doctype html><title>Empty</title><p>Empty", content_type="text/html"
    )


@asynccontextmanager
async def served(look: Changing, seconds: float) -> AsyncIterator[str]:
    page = PageServer(look, feed=Feed(look, seconds=seconds))
    app = web.Application()
    app.add_routes([web.get(f"{PREFIX}{EMPTY}", empty_page), *page.routes()])
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with page.looking():
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/page/"
    finally:
        await runner.cleanup()


async def frames(page: Page, seconds: float) -> Frames:
    """Count a tab's frames for some time."""
    before = await cpu(page)
    rate, longest = await page.ask(COUNT % int(seconds * 1000))
    return Frames(float(rate), float(longest), rate * seconds, (await cpu(page)).since(before))


async def first_paints(browser: Browser, url: str) -> list[float]:
    """Milliseconds to the first paint, of new tabs."""
    found = []
    for _ in range(TABS):
        page = await browser.page()
        await page.go(url)
        await page.wait(f"({PAINT}) > 0")
        found.append(float(await page.ask(PAINT)))
        await page.call("Page.close")
    return found


@dataclass
class Numbers:
    """What was measured in the browser. `still`: an empty page's frames; `change`: the work for each change."""

    empty: list[float]
    paints: list[float]
    whole: float
    still: Frames
    moving: Frames
    change: str


async def in_browser(given: argparse.Namespace) -> Numbers:
    look = Changing(given.nodes, given.models, 1)
    # One change a look: as many looks as changes, each an event of its own.
    with tempfile.TemporaryDirectory() as directory:
        async with served(look, 1 / given.changes) as url, chromium(Path(directory)) as browser:
            empty = await first_paints(browser, f"{url}{EMPTY}")
            paints = await first_paints(browser, url)
            page = await browser.page()
            await page.call("Performance.enable")
            began = time.monotonic()
            await page.go(url)
            await page.wait("document.querySelectorAll('#map-scroll [role=gridcell]').length > 0")
            whole = time.monotonic() - began
            # In sight: what isn't is not drawn.
            await page.ask("document.getElementById('map').scrollIntoView()")
            moving = await frames(page, given.seconds)
            before, looks = await cpu(page), look.looks
            await asyncio.sleep(given.seconds)
            change = (await cpu(page)).since(before).each(look.looks - looks)
            blank = await browser.page()
            await blank.call("Performance.enable")
            await blank.go(f"{url}{EMPTY}")
            still = await frames(blank, 2)
            assert not page.errors, page.errors
    return Numbers(empty, paints, whole, still, moving, change)


async def measure(given: argparse.Namespace) -> bool:
    """Print the numbers; return whether all are within their limits."""
    size = sum(
        len(each.read_bytes()) for each in (files("cache_agent.api.page") / "files").iterdir()
    )
    found = await in_browser(given)
    look = Changing(given.nodes, given.models, 1)
    before = await look()
    began = time.perf_counter()
    difference(before, await look())
    took = time.perf_counter() - began
    paint = statistics.median(found.paints)
    moving = found.moving
    print(f"files: {size / 1000:.1f} kB (limit {MOST_BYTES / 1000:.0f})")
    print(
        f"first paint: median {paint:.0f} ms, range {min(found.paints):.0f} to {max(found.paints):.0f} "
        f"(limit {MOST_PAINT_MS}); of an empty page {statistics.median(found.empty):.0f} ms"
    )
    print(f"{given.nodes} nodes by {given.models} models drawn after {found.whole:.2f} s")
    print(
        f"frames at {given.changes:g} changes a second: {moving.rate:.1f} a second, longest {moving.longest:.0f} ms; "
        f"of an empty page {found.still.rate:.1f} a second"
    )
    print(f"  for each frame {moving.cpu.each(moving.count)} (limit {MOST_FRAME_CPU_MS:.0f})")
    print(f"  for each change {found.change}")
    print(f"a look and its difference: {1000 * took:.1f} ms")
    light = 1000 * moving.cpu.process / moving.count <= MOST_FRAME_CPU_MS
    return size < MOST_BYTES and paint < MOST_PAINT_MS and (moving.rate > LEAST_FRAMES or light)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--changes", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=10)
    return 0 if asyncio.run(measure(parser.parse_args())) else 1


if __name__ == "__main__":
    sys.exit(main())
