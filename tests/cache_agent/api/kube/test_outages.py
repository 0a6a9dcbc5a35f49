"""The client through everything that real API servers do to it: what it knows in the end is what is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_agent.api.kube.backoff import JitteredBackoff
from cache_agent.api.kube.follower import Follower
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.refusals import Gone, ServerFailed
from modelimage.errors import AccessDenied, RateLimited, WeightyardError
from tests.examples import examples
from tests.servers.process import until
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi

Json = dict[str, Any]
PATH = "/api/v1/namespaces/team/serviceaccounts"
NAMES = ["a", "b", "c"]


def account(name: str) -> Json:
    return {
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "team"},
    }  # fmt: skip


class Known:
    """What a follower has told: objects by name, with their versions."""

    def __init__(self) -> None:
        self.objects: dict[str, str] = {}

    def replace(self, documents: list[Json]) -> None:
        self.objects = {}
        for each in documents:
            self.put(each)

    def put(self, document: Json) -> None:
        metadata = document["metadata"]
        self.objects[metadata["name"]] = metadata["resourceVersion"]

    def drop(self, document: Json) -> None:
        self.objects.pop(document["metadata"]["name"], None)

    def trouble(self, error: WeightyardError | None) -> None:
        """What failed is tried again."""


def there(api: FakeApi) -> dict[str, str]:
    found = api.list("ServiceAccount", "team")
    return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in found}


def change(api: FakeApi, name: str, number: int) -> None:
    """Create, change or delete an object, by turns."""
    if ("ServiceAccount", "team", name) not in api.objects:
        api.create(account(name))
    elif number % 3:
        labels = {"metadata": {"labels": {"n": str(number)}}}
        api.merge_patch("ServiceAccount", name, labels, namespace="team")
    else:
        api.delete("ServiceAccount", "team", name)


# What happens to the server while objects change. The statuses are answers to the next lists and watches.
FAULTS = st.sampled_from(
    ["none", "close", "expire", "away", "repeating", "slow", "forget pages", "401", "403", "429", "500", "503"]
)  # fmt: skip
STEPS = st.lists(st.tuples(FAULTS, st.lists(st.sampled_from(NAMES), max_size=4)), max_size=8)


async def step(http: HttpApi, fault: str, changed: list[str], number: int) -> None:
    watches = http.watches
    async with contextlib.AsyncExitStack() as stack:
        if fault == "away":
            await stack.enter_async_context(http.away())
        elif fault in ("repeating", "slow"):
            stack.enter_context(watches.repeating() if fault == "repeating" else watches.slow())
        elif fault in ("close", "expire"):
            watches.close() if fault == "close" else watches.expire()
        elif fault == "forget pages":
            http.pages.forget()
        elif fault != "none":
            for verb in ("list", "watch"):
                http.answers[verb, "ServiceAccount"] = deque([int(fault)])
            watches.close()
        for each in changed:
            change(http.api, each, number)
        await asyncio.sleep(0)


@given(STEPS)
@settings(max_examples=examples(40))
def test_a_follower_knows_what_is_there_after_any_faults(
    steps: list[tuple[str, list[str]]],
) -> None:
    async def scenario() -> None:
        api, known = FakeApi(), Known()
        http = HttpApi(api, plain=True)
        http.page_size = 2
        async with http, http.client() as client:
            backoff = JitteredBackoff(lambda: 0.0, first=0.002, most=0.01)
            task = asyncio.create_task(Follower(client, PATH, known, backoff=backoff).run())
            try:
                for number, (fault, changed) in enumerate(steps):
                    await step(http, fault, changed, number)
                await until(lambda: known.objects == there(api), what="the server's state")
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


def five(client_of: Any) -> None:
    """Run a scenario with a server that has five accounts and gives them in pages of two."""

    async def running() -> None:
        api = FakeApi()
        for name in "abcde":
            api.create(account(name))
        http = HttpApi(api, plain=True)
        http.page_size = 2
        async with http, http.client() as client:
            await client_of(http, client)

    asyncio.run(running())


def test_a_list_whose_moment_is_forgotten_goes_on_where_it_was() -> None:
    async def scenario(http: HttpApi, client: KubeClient) -> None:
        found: list[str] = []
        async for items, _ in client.pages(PATH, {}):
            if not found:
                http.pages.forget()
                http.api.delete("ServiceAccount", "team", "e")
            found += [each["metadata"]["name"] for each in items]
        assert found == ["a", "b", "c", "d"]

    five(scenario)


def test_a_list_to_watch_from_shows_one_moment_or_nothing() -> None:
    async def scenario(http: HttpApi, client: KubeClient) -> None:
        http.pages.page = forgetting(http.pages.page, http.pages.forget)  # type: ignore[method-assign]
        with pytest.raises(Gone):
            await client.list_all(PATH, {})

    def forgetting(page: Any, forget: Any) -> Any:
        def answer(*args: Any, **options: Any) -> Any:
            found = page(*args, **options)
            forget()
            return found

        return answer

    five(scenario)


@pytest.mark.parametrize(("status", "times", "error"), [
    (429, 3, None), (429, 9, RateLimited), (503, 1, ServerFailed), (500, 1, ServerFailed), (401, 1, None),
    (401, 2, AccessDenied), (403, 1, AccessDenied),
])  # fmt: skip
def test_what_was_not_carried_out_is_asked_again_and_nothing_else(
    status: int, times: int, error: type[WeightyardError] | None
) -> None:
    async def scenario(http: HttpApi, client: KubeClient) -> None:
        http.answers["list", "ServiceAccount"] = deque([status] * times)
        if error is None:
            assert len((await client.get(PATH))["items"]) == 2
        else:
            with pytest.raises(error):
                await client.get(PATH)

    five(scenario)
