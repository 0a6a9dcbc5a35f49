"""The controller's page: the cluster as its watches know it, to whom the API server admits, in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from cache_agent.api.page.node_rows import node_rows
from cache_agent.api.page.view import MOST_NODES, MOST_WORKSPACES, compose
from tests.cache_agent.api.page.samples import (
    GB,
    VERIFIED,
    busy_node,
    desired,
    held,
    key_of,
    node,
)
from tests.servers.chromium import Page, chromium
from tests.servers.process import until
from tests.workspace import samples
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.living import control, make_runner
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster_page.page import ClusterLook, serving_page
from workspace.controller.cluster_page.page_rows import workspace_problem, workspace_row
from workspace.controller.node_caches.cached_model_controller import CacheRunner

Json = dict[str, Any]
TOKEN = "a-token-of-the-cluster"
EVERYTHING = {"nodecaches", "workspaces"}
HOSTILE = "<img src=x onerror=alert(1)>"


class Served:
    """A controller at work on a cluster, with its page."""

    def __init__(self, cluster: Cluster, http: HttpApi, url: str, look: ClusterLook) -> None:
        self.cluster, self.http, self.url, self.look = cluster, http, url, look


@contextlib.asynccontextmanager
async def served(cluster: Cluster) -> AsyncIterator[Served]:
    async with HttpApi(cluster.api) as http, http.client() as client:
        http.users = {TOKEN: "ann", "tenant": "bob"}
        http.readers = {"ann": EVERYTHING, "bob": {"workspaces"}}
        api = KubernetesApi(client)
        runner, caching = make_runner(api), CacheRunner(api)
        look = ClusterLook(runner, caching, lambda: True)
        working = asyncio.create_task(control(client, runner, caching))
        try:
            async with serving_page(look, client, host="127.0.0.1", port=0) as port:
                yield Served(cluster, http, f"http://127.0.0.1:{port}", look)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


def report(cluster: Cluster, name: str, **status: Any) -> None:
    """An agent's report."""
    document = node(name, **status).to_document()
    with contextlib.suppress(Exception):
        cluster.api.delete("NodeCache", "", name)
    cluster.api.create(document)


def small_cluster() -> Cluster:
    cluster = Cluster()
    for name in ("n1", "n2"):
        cluster.add_node(name)
    fetching = desired(
        2, "Fetching", bytesDone=4 * GB, bytesTotal=16 * GB, bytesPerSecond=2 * GB, secondsLeft=6,
        sources=["peer n1"], message=HOSTILE,
    )  # fmt: skip
    space = {"total": 100 * GB, "used": 32 * GB, "free": 68 * GB, "evictable": 16 * GB}
    victim = {
        "key": key_of(2),
        "frees": 12 * GB,
        "uses": 2,
        "lastUsed": VERIFIED,
        "fetchSeconds": 40,
    }
    report(
        cluster, "n1", models=[held(1, leases=1), held(2)], space=space, held="2/2", nextVictims=[victim]
    )  # fmt: skip
    report(cluster, "n2", desired=[fetching], held="0/1")
    return cluster


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer nonsense"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": "Bearer tenant"}, 403),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
def test_who_may_read(headers: dict[str, str], status: int) -> None:
    async def scenario() -> None:
        async with (
            served(Cluster()) as page,
            aiohttp.ClientSession() as session,
            session.get(f"{page.url}/page/events", headers=headers) as answer,
        ):
            assert answer.status == status
            if status != 200:
                body = await answer.text()
                assert TOKEN not in body
                assert "nonsense" not in body

    asyncio.run(scenario())


def test_an_api_server_that_does_not_review_lets_nobody_in_and_keeps_its_reasons() -> None:
    async def scenario() -> None:
        async with served(Cluster()) as page, aiohttp.ClientSession() as session:
            page.http.callers.allows = lambda request: "tokenreviews" not in request.path
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with session.get(f"{page.url}/page/events", headers=headers) as answer:
                assert answer.status == 502
                assert "tokenreviews" not in await answer.text()

    asyncio.run(scenario())


def test_a_workspace_says_what_it_waits_for_until_it_is_up() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.add_node("n1", gpus=0)
        cluster.create_workspace(replicas=1)
        async with served(cluster) as page:
            row: Json = {}

            async def look() -> Json:
                view = await page.look()
                return view["workspaces"].get(f"{NAMESPACE}/{NAME}", {})

            async def until_row(reason: bool) -> None:
                nonlocal row
                done = False

                async def follow() -> None:
                    nonlocal row, done
                    while not done:
                        cluster.step()
                        row = await look()
                        done = row.get("ready") is reason and row.get("reason") != "Unseen"
                        await asyncio.sleep(0.01)

                task = asyncio.create_task(follow())
                try:
                    await until(lambda: done or task.done(), what=f"a row like that, not {row}")
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                assert done

            await until_row(False)
            assert [step["state"] for step in row["steps"]].count("done") < 4
            assert any(step["state"] in ("now", "failed") for step in row["steps"])
            cluster.add_node("n2", gpus=1)
            await until_row(True)
            assert {step["state"] for step in row["steps"]} == {"done"}
            assert row["versions"][0]["wanted"] is True
            assert row["pods"][0]["state"] == "ready"
            # Nothing has changed: the same objects again, which no reader is told of.
            first, second = await page.look(), await page.look()
            assert (
                first["workspaces"][f"{NAMESPACE}/{NAME}"]
                is second["workspaces"][f"{NAMESPACE}/{NAME}"]
            )

    asyncio.run(scenario())


def test_what_is_shown_of_more_than_a_page_has_is_what_whole_rows_of_everything_would_show() -> (
    None
):
    nowhere = KubernetesApi(cast("Any", None))
    runner, caching = make_runner(nowhere), CacheRunner(nowhere)
    reports = [busy_node(number, 6) for number in range(MOST_NODES + 20)]
    # Of the nodes that come last, one that begins, and one that knows what it waits for.
    begins = [desired(99, "Pending", modelKey=None), desired(98, "Failed", message="no space")]
    reports[7] = node(reports[7].name, desired=begins)
    reports[-1] = node("z", desired=[desired(99, "Ready")])
    for each in reports:
        caching.view.put(each.to_document())
    for number in range(MOST_WORKSPACES + 20):
        ready = {
            "type": "Ready",
            "status": "True" if number % 3 else "False",
            "reason": "CrashLoop",
        }
        document = samples.document(f"w{number}", namespace=NAMESPACE)
        runner.cache.put({**document, "status": {"conditions": [ready]}})
    rows = {
        f"{space}/{name}": workspace_row(runner.cache.workspace((space, name)) or {}, (), {})
        for space, name in runner.cache.workspaces()
    }
    problems = [found for row in rows.values() if (found := workspace_problem(row))]
    about = {"kind": "cluster", "name": "cluster", "leads": True}
    look = ClusterLook(runner, caching, lambda: True)

    for _ in range(2):  # the second look uses what the first made
        view = asyncio.run(look())
        assert view == compose(about, list(map(node_rows, reports)), rows, problems)
    assert view["about"][""]["leftOut"]["nodes"] == 20
    assert view["about"][""]["leftOut"]["workspaces"] == 20
    # Known by the node that isn't shown.
    assert "z" not in view["nodes"]
    assert f"{reports[7].name}/{key_of(99)[7:27]}" in view["cells"]


async def visit(page: Page, site: Served) -> None:
    await page.go(site.url)
    await page.wait("!document.getElementById('entry').hidden")
    await page.type("tenant")
    await page.press("Enter")
    await page.wait("document.getElementById('entry-why').textContent.includes('nodecaches')")
    page.errors.clear()  # the browser tells of 401 and 403
    await page.type(TOKEN)
    await page.press("Enter")
    await page.wait("document.querySelectorAll('#map-scroll [role=gridcell]').length === 4")
    spoken = await page.spoken()
    for title in ("Problems", "Servers", "Models by node", "Moving now", "Space"):
        assert ("heading", title) in spoken
    assert ("grid", "Models by node") in spoken
    assert ("gridcell", "n2, model-2: 25% fetched") in spoken
    assert ("gridcell", "n1, model-1:v1: on disk") in spoken
    # Text of others is text.
    assert HOSTILE in await page.ask("document.getElementById('move-rows').textContent")
    assert await page.ask("document.images.length") == 0
    assert "peer n1" in await page.ask("document.getElementById('move-rows').textContent")


async def open_victims(page: Page, site: Served) -> None:
    """What goes next is opened by keyboard, and stays open while the node's numbers change."""
    summary = "document.querySelector('#space-rows summary')"
    await page.ask(f"{summary}.focus()")
    await page.press("Enter")
    listed = "document.querySelector('#space-rows details[open] li')?.textContent"
    said = await page.ask(listed)
    assert "model-2" in said
    assert "frees 12.0 GB: used 2 times, last " in said
    assert said.endswith("ago; took 40 s to fetch")
    victims = [{"key": key_of(1), "frees": 16 * GB, "lastUsed": VERIFIED}]
    site.cluster.api.update(
        "NodeCache", "", "n1", lambda document: document["status"].update(nextVictims=victims)
    )
    await page.wait(f"({listed})?.includes('model-1')")
    assert "frees 16.0 GB: last used " in await page.ask(listed)
    assert await page.ask(f"document.activeElement === {summary}")


async def walk(page: Page) -> None:
    """By keyboard: the map is one stop, its cells are reached by arrows."""
    await page.ask("document.querySelector('#map-scroll [role=gridcell][tabindex=\"0\"]').focus()")
    await page.press("ArrowDown")
    await page.press("End")
    here = "document.activeElement.getAttribute('aria-label')"
    assert await page.ask(here) == "n2, model-2: 25% fetched"
    assert "n2" in await page.ask("document.getElementById('map-detail').textContent")
    await page.press("Home")
    assert (await page.ask(here)).startswith("n2, model-1")
    assert (
        await page.ask(
            "document.querySelectorAll('#map-scroll [role=gridcell][tabindex=\"0\"]').length"
        )
        == 1
    )


@pytest.mark.servers
def test_a_person_signs_in_and_sees_the_cluster_live_by_keyboard_and_in_every_light(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with served(small_cluster()) as site, chromium(tmp_path) as browser:
            page = await browser.page()
            await visit(page, site)
            await open_victims(page, site)
            await walk(page)
            report(site.cluster, "n2", models=[held(2, tier="memory")], held="1/1")
            await page.wait(
                "[...document.querySelectorAll('#map-scroll [role=gridcell]')].at(-1).ariaLabel.endsWith('in memory')"
            )
            colours = set()
            for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
                await page.look_like(width=width, dark=dark)
                assert await page.ask("document.documentElement.scrollWidth") <= width
                colours.add(
                    await page.ask("getComputedStyle(document.documentElement).backgroundColor")
                )
            assert len(colours) == 2
            assert page.errors == []
            assert {each.rpartition("/")[0] for each in page.requests} <= {
                site.url,
                f"{site.url}/page",
            }

    asyncio.run(scenario())


@pytest.mark.servers
def test_a_workspace_that_waits_is_chosen_by_itself_and_another_by_its_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = small_cluster()
        cluster.create_workspace(replicas=1)
        async with served(cluster) as site, chromium(tmp_path) as browser:
            page = await browser.page()
            await page.go(f"{site.url}/page/#token={TOKEN}")
            title = f"Why is {NAMESPACE}/{NAME} not up yet?"
            await page.wait(f"document.getElementById('why-title').textContent === '{title}'")
            assert ("heading", title) in await page.spoken()
            assert await page.ask("document.querySelectorAll('#why .steps > li').length") == 4
            await page.ask("document.querySelector('#server-rows button').focus()")
            await page.press("Enter")
            assert await page.ask("document.activeElement.id") == "why-title"
            assert await page.ask("location.hash") == f"#why={NAMESPACE}%2F{NAME}"
            assert page.errors == []

    asyncio.run(scenario())
