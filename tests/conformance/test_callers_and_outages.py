"""Who is let in, who must wait, and what a server no longer knows. The fake one must do the same as real ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cache_agent.api.kube.backoff import JitteredBackoff
from cache_agent.api.kube.follower import Follower
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.refusals import Gone
from modelimage.errors import AccessDenied, InvalidInput, RateLimited, WeightyardError
from tests.conformance.cases import Case, Opening, collecting, restarting, run
from tests.conformance.subject import Subject, account

Json = dict[str, Any]
CASES: list[Case] = []
case = collecting(CASES)
AT_A_TIME = 20
UNKNOWN, NOT_ALLOWED = "has expired, was revoked", "ClusterRole"


def test_the_server_behaves(opening: Opening, case: Case) -> None:
    run(opening, case)


def caller(api: Subject, token: str | None, **options: Any) -> KubeClient:
    return KubeClient(api.means.connection(token), role="tests", **options)


async def refused(client: KubeClient, path: str) -> AccessDenied:
    """The refusal of a list, which is that of a watch too."""
    with pytest.raises(AccessDenied) as listed:
        await client.get(path)
    with pytest.raises(AccessDenied) as watched:
        await first_change(client, path, "1")
    assert listed.value.hint == watched.value.hint
    return listed.value


async def first_change(client: KubeClient, path: str, version: str) -> str:
    async for kind, _ in client.watch(path, {}, version):
        return kind
    return ""


# Callers


@case
async def an_unknown_token_is_unauthorized(api: Subject) -> None:
    async with caller(api, "unknown") as client:
        found = await refused(client, api.path("ServiceAccount"))
    assert found.message.endswith(": Unauthorized")
    assert UNKNOWN in (found.hint or "")


@case
async def nobody_is_refused(api: Subject) -> None:
    # With or without anonymous callers: they may do nothing.
    async with caller(api, None) as client:
        await refused(client, api.path("ServiceAccount"))


@case
async def a_caller_without_rights_is_told_which_are_missing(api: Subject) -> None:
    name = (await api.create(account()))["metadata"]["name"]
    async with caller(api, await api.token(name)) as client:
        assert (await client.get("/api"))["versions"] == ["v1"]
        found = await refused(client, api.path("ServiceAccount"))
    user = f"system:serviceaccount:{api.namespace}:{name}"
    missing = 'cannot list resource "serviceaccounts" in API group "" in the namespace'
    assert f'User "{user}" {missing} "{api.namespace}"' in found.message
    assert NOT_ALLOWED in (found.hint or "")


@case
async def a_token_ends_with_its_account(api: Subject) -> None:
    document = account()
    name = (await api.create(document))["metadata"]["name"]
    token = await api.token(name)
    await api.delete("ServiceAccount", name)
    await api.create(document)  # another one, with the same name
    async with caller(api, token) as client:
        found = await refused(client, api.path("ServiceAccount"))
    assert UNKNOWN in (found.hint or "")


@case
async def who_asks_too_often_is_told_when_to_ask_again(api: Subject) -> None:
    name = (await api.create(account()))["metadata"]["name"]
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)
        await asyncio.sleep(0)

    path = api.path("ServiceAccount")
    async with (
        caller(api, await api.token(name), sleep=wait) as client,
        api.means.throttled(api.namespace, name),
    ):
        while not waited:
            asked = (client.get(path) for _ in range(AT_A_TIME))
            found = await asyncio.gather(*asked, return_exceptions=True)
            # Of those that were let in, each is refused for another reason.
            assert {type(each) for each in found} <= {AccessDenied, RateLimited}
    assert set(waited) == {1}


# Lists and watches


@case
async def all_pages_show_one_moment(api: Subject) -> None:
    made = [await api.create(account(labels={"page": "y"})) for _ in range(4)]
    names = sorted(each["metadata"]["name"] for each in made)
    query = {"labelSelector": "page=y", "limit": "1"}
    first = await api.list("ServiceAccount", **query)
    await api.delete("ServiceAccount", names[-1])
    await api.create(account(labels={"page": "y"}))
    found = [first]
    while token := found[-1]["metadata"].get("continue"):
        found.append(await api.list("ServiceAccount", **query, **{"continue": token}))
    assert [each["metadata"]["name"] for page in found for each in page["items"]] == names
    assert len({page["metadata"]["resourceVersion"] for page in found}) == 1


@case
async def a_page_of_nobodys_list_is_refused(api: Subject) -> None:
    with pytest.raises(InvalidInput, match="continue"):
        await api.list("ServiceAccount", limit="1", **{"continue": "nobodys"})


@case
async def a_watch_of_what_others_do_ends_with_a_bookmark(api: Subject) -> None:
    """So that the next one needn't begin where this one did."""
    listed = await api.list("ServiceAccount", labelSelector="marked=x")
    version, opened = listed["metadata"]["resourceVersion"], asyncio.Event()
    query = {"labelSelector": "marked=x", "timeoutSeconds": "9"}
    watch = api.client.watch(api.path("ServiceAccount"), query, version, opened=opened.set)

    async def another() -> None:
        await opened.wait()
        await api.create(account())

    other = asyncio.create_task(another())
    events = [each async for each in watch]
    await other
    assert {kind for kind, _ in events} == {"BOOKMARK"}
    assert events[-1][1]["kind"] == "ServiceAccount"
    assert int(events[-1][1]["metadata"]["resourceVersion"]) > int(version)


@case
@restarting
async def another_server_knows_no_old_versions(api: Subject) -> None:
    listed = await api.list("ServiceAccount")
    made = await api.create(account())
    await api.delete("ServiceAccount", made["metadata"]["name"])
    await api.means.restart()
    path, version = api.path("ServiceAccount"), listed["metadata"]["resourceVersion"]
    with pytest.raises(Gone, match="too old resource version"):
        await first_change(api.client, path, version)


class Seen:
    """Keeps the names that are there."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.changed = asyncio.Event()

    def replace(self, documents: list[Json]) -> None:
        self.names = {each["metadata"]["name"] for each in documents}
        self.changed.set()

    def put(self, document: Json) -> None:
        self.names.add(document["metadata"]["name"])
        self.changed.set()

    def drop(self, document: Json) -> None:
        self.names.discard(document["metadata"]["name"])
        self.changed.set()

    def trouble(self, error: WeightyardError | None) -> None:
        """What failed is tried again."""

    async def until(self, names: set[str]) -> None:
        while self.names != names:
            self.changed.clear()
            await self.changed.wait()


@case
@restarting
async def who_follows_sees_what_happens_after_a_restart(api: Subject) -> None:
    before = (await api.create(account(labels={"seen": "x"})))["metadata"]["name"]
    seen, backoff = Seen(), JitteredBackoff(lambda: 0.0, first=0.01, most=0.5)
    query = {"labelSelector": "seen=x"}
    follower = Follower(api.client, api.path("ServiceAccount"), seen, query, backoff=backoff)
    task = asyncio.create_task(follower.run())
    try:
        await seen.until({before})
        await api.means.restart()
        after = (await api.create(account(labels={"seen": "x"})))["metadata"]["name"]
        await api.delete("ServiceAccount", before)
        await seen.until({after})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
