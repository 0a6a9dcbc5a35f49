"""The agent's page in a real browser: what it shows, to whom, by keyboard, in the dark and on a telephone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cache_agent.api.wire import LeaseBody, PullBody, PullDone
from modelimage.reference import RegistryReference, parse_image
from tests.cache_agent.daemon.test_agent import RunningAgent, agent, push
from tests.cache_agent.images import simple_image
from tests.servers.chromium import Page, chromium
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers
ROWS = "document.querySelectorAll('#map-scroll tbody tr').length"


def port_of(running: RunningAgent) -> int:
    def ready() -> int | None:
        lines = [line for line in running.log.read_text().splitlines() if '"ready"' in line]
        return int(json.loads(lines[-1])["port"]) if lines else None

    return wait_until(ready, what="ready event")


def browse(directory: Path, visit: Callable[[Page], Awaitable[None]]) -> Page:
    """Let a person with a browser do something; gives the page as it was left."""

    async def main() -> Page:
        async with chromium(directory) as browser:
            page = await browser.page()
            await visit(page)
            return page

    return asyncio.run(main())


def test_a_person_sees_the_node_after_signing_in_and_each_change_as_it_comes(
    tmp_path: Path, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    made, _, _ = simple_image(weights=[5000])
    reference = parse_image(f"{registry.host}/{unique_name('page/model')}:v1")
    assert isinstance(reference, RegistryReference)
    push(made, reference)
    root = tmp_path / "root"
    with agent(root, "--port", "0") as running:
        url = f"http://127.0.0.1:{port_of(running)}/page/"

        async def visit(page: Page) -> None:
            await page.go(url)
            await page.wait("!document.getElementById('entry').hidden")
            # By keyboard alone: the field has the focus, and Enter sends.
            assert await page.ask("document.activeElement.id") == "token"
            await page.type("wrong")
            await page.press("Enter")
            await page.wait("document.getElementById('entry-why').textContent.includes('refused')")
            page.errors.clear()  # the browser tells of each 401
            await page.type((root / "agent.token").read_text())
            await page.press("Enter")
            await page.wait("document.getElementById('state').textContent === 'Live'")
            await page.wait("!document.getElementById('map-none').hidden")
            body = PullBody(image=str(reference))
            done = (await asyncio.to_thread(lambda: list(running.client.pull(body))))[-1]
            assert isinstance(done, PullDone)
            await page.wait(f"{ROWS} === 1")
            lease = LeaseBody(model=done.key, holder="manual:someone")
            await asyncio.to_thread(running.client.lease, lease)
            await page.wait(
                "document.getElementById('map').innerText.includes('in use by manual:someone')"
            )
            spoken = await page.spoken()
            assert ("heading", "Models") in spoken
            # The token survives a reload of this tab, and is nowhere else.
            await page.go(url)
            await page.wait(f"{ROWS} === 1")
            assert await page.ask("document.cookie + location.hash + localStorage.length") == "0"

        page = browse(tmp_path, visit)

    assert page.errors == []
    assert {each.partition("/page/")[0] + "/page/" for each in page.requests} == {url}


def test_a_link_with_the_token_signs_in_and_the_address_keeps_nothing_of_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with agent(root, "--port", "0") as running:
        token = (root / "agent.token").read_text()
        url = f"http://127.0.0.1:{port_of(running)}/page/"

        async def visit(page: Page) -> None:
            await page.go(f"{url}#token={token}")
            await page.wait("document.getElementById('state').textContent === 'Live'")
            assert await page.ask("location.href") == url
            for width, dark in ((1280, True), (390, False), (390, True)):
                await page.look_like(width=width, dark=dark)
                assert await page.ask("document.documentElement.scrollWidth") <= width

        page = browse(tmp_path, visit)

    assert page.errors == []
