"""Questions to registries: which are allowed, and that slow ones keep neither workers nor threads from the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from modelimage.access import Access
from modelimage.allowed_registries import AllowedRegistries, RegistryNotAllowed
from modelimage.errors import InvalidInput, Unreachable
from tests.workspace import samples
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.living import resolve
from workspace.controller.cluster.fair_slots import FairSlots
from workspace.controller.cluster.image_questions import Answer, ImageQuestions
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import Key
from workspace.controller.cluster.secrets import NamespacedResolver
from workspace.render.release import ResolvedImages
from workspace.schema import Workspace

ENDLESS = 86400.0


async def ask(image: str, allowed: AllowedRegistries) -> ResolvedImages:
    async with HttpApi(FakeApi()) as http, http.client() as client:
        resolver = NamespacedResolver(KubernetesApi(client), Access(), allowed)
        return await resolver(samples.workspace(model={"image": image}))


@pytest.mark.parametrize(
    "image", ["reg.internal/m:v1", "169.254.169.254/m:v1", "127.0.0.1:5000/m:v1"]
)
def test_only_the_operators_registries_are_asked(image: str) -> None:
    for allowed in (AllowedRegistries(), AllowedRegistries(("*.example", "other.internal"))):
        with pytest.raises(RegistryNotAllowed):
            asyncio.run(ask(image, allowed))


def test_a_listed_registry_is_asked() -> None:
    with pytest.raises(Unreachable):
        asyncio.run(ask("127.0.0.1:1/m:v1", AllowedRegistries(("127.0.0.1:1",))))


@pytest.mark.parametrize("image", ["oci:/var/run/secrets:v1", "docker:x"])
def test_nothing_is_read_from_the_controllers_own_disk(image: str) -> None:
    with pytest.raises(InvalidInput, match="isn't in a registry"):
        asyncio.run(ask(image, AllowedRegistries()))


@contextmanager
def stuck() -> Iterator[threading.Event]:
    """An event that blocked threads wait for, set at the end whatever happens."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


def test_a_name_at_its_limit_delays_nobody_else() -> None:
    async def run(event: threading.Event) -> None:
        slots = FairSlots(total=8, each=2)
        blocked = [
            asyncio.create_task(slots.run(["namespace a", f"registry {i}"], event.wait))
            for i in range(20)
        ]
        slow = [
            asyncio.create_task(slots.run([f"namespace {i}", "registry slow"], event.wait))
            for i in range(20)
        ]
        assert await slots.run(["namespace b", "registry good"], lambda: 1) == 1
        event.set()
        await asyncio.gather(*blocked, *slow)
        assert slots.is_free(["namespace a", "registry slow"])
        slots.close()

    with stuck() as event:
        asyncio.run(run(event))


def test_who_holds_least_goes_first() -> None:
    order: list[str] = []

    async def run(event: threading.Event) -> None:
        slots = FairSlots(total=2, each=2)
        first = [asyncio.create_task(slots.run(["a"], event.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        later = [
            asyncio.create_task(slots.run([name], lambda name=name: order.append(name)))
            for name in ("a", "a", "a", "b")
        ]
        await asyncio.sleep(0)
        event.set()
        await asyncio.gather(*first, *later)
        slots.close()

    with stuck() as event:
        asyncio.run(run(event))
    assert order[0] == "b"


def test_a_cancelled_question_gives_its_slot_back_when_its_thread_ends() -> None:
    async def run(event: threading.Event) -> None:
        slots = FairSlots(total=1, each=1)
        running = asyncio.create_task(slots.run(["a"], event.wait))
        waiting = asyncio.create_task(slots.run(["a"], event.wait))
        await asyncio.sleep(0)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert not slots.is_free(["a"])
        event.set()
        assert await slots.run(["a"], lambda: 1) == 1
        slots.close()

    with stuck() as event:
        asyncio.run(run(event))


def test_a_slow_answer_wakes_its_workspace_when_it_arrives() -> None:
    async def run() -> None:
        go_on, woken = asyncio.Event(), asyncio.Queue[Key]()

        async def slow(workspace: Workspace) -> ResolvedImages:
            await go_on.wait()
            return await resolve(workspace)

        questions = ImageQuestions(slow, woken.put_nowait, grace=0.0)
        workspace, key = samples.workspace(), ("team-a", "chat")
        assert await questions.answer(key, workspace) is None
        assert await questions.answer(key, workspace) is None
        go_on.set()
        assert await woken.get() == key
        assert isinstance(await questions.answer(key, workspace), ResolvedImages)
        assert woken.empty()
        await questions.close()

    asyncio.run(run())


def test_slow_questions_hold_only_a_few_workers() -> None:
    """With eight workers and no end to the patience, the others still get through."""

    async def run() -> None:
        never = asyncio.Event()

        async def slow(workspace: Workspace) -> ResolvedImages:
            if workspace.name.startswith("slow"):
                await never.wait()
            return await resolve(workspace)

        questions = ImageQuestions(slow, lambda key: None, grace=ENDLESS)

        async def one(name: str) -> Answer | None:
            document = samples.workspace().to_document()
            document["metadata"]["name"] = name
            return await questions.answer(("team-a", name), Workspace.model_validate(document))

        held = [asyncio.create_task(one(f"slow-{number}")) for number in range(8)]
        _, pending = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
        assert len(pending) <= 4
        for each in pending:
            each.cancel()
        await questions.close()
        await asyncio.gather(*held, return_exceptions=True)

    asyncio.run(run())


def test_a_question_about_another_spec_is_asked_anew() -> None:
    async def run() -> None:
        asked: list[Workspace] = []

        async def slow(workspace: Workspace) -> ResolvedImages:
            asked.append(workspace)
            await asyncio.Event().wait()
            raise AssertionError

        questions = ImageQuestions(slow, lambda key: None, grace=0.0)
        key = ("team-a", "chat")
        for count in (1, 2, 2):
            await questions.answer(key, samples.workspace(replicas=count))
            await asyncio.sleep(0)
        assert len(asked) == 2
        questions.forget(key)
        await questions.close()

    asyncio.run(run())
