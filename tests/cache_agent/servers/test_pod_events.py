"""Events of pods, written to an API server."""

from __future__ import annotations

import asyncio
from typing import Any

from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.publish_record import ANNOTATION, PublishRecord, parse_record
from cache_agent.servers.csi.pod_events import PodEvent, PodEvents
from tests.servers.process import until
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi

Json = dict[str, Any]


def event(name: str, message: str = "waiting") -> PodEvent:
    return PodEvent("uid-1", name, "PullingModel", message)


def written(*told: PodEvent, refuses: bool = False) -> tuple[list[Json], list[str]]:
    """What reaches the API server of events that are told while one writes, and what is logged."""
    server, notes = FakeApi(), list[str]()
    http = HttpApi(server)
    http.refused = {"Event": (403, "events are forbidden")} if refuses else {}

    async def scenario() -> None:
        async with http, KubeClient(http.connection(), role="agent") as api:
            events = PodEvents(lambda: 0.0, lambda event, **_: notes.append(event))
            writing = asyncio.create_task(events.write(api, "n1"))
            await asyncio.sleep(0)
            for each in told:
                events.tell(each)
            wanted = len([each for each in told if each.name])
            await until(lambda: len(server.list("Event")) + len(notes) >= wanted, what="events")
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            events.tell(event("team/late"))  # nobody writes: nothing is kept

    asyncio.run(scenario())
    return server.list("Event"), notes


def test_an_event_is_its_pods() -> None:
    (found,), _ = written(event("team/web-0", "m" * 2000))
    assert found["metadata"]["name"].startswith("web-0.")
    assert found["metadata"]["namespace"] == "team"
    assert found["involvedObject"]["uid"] == "uid-1"
    assert (found["reason"], len(found["message"])) == ("PullingModel", 1024)
    assert found["source"] == {"component": "weightyard-agent", "host": "n1"}


def test_a_refused_event_is_logged_and_hinders_no_other() -> None:
    found, notes = written(event("team/a"), event("team/b"), refuses=True)
    assert found == []
    assert notes == ["event not written"] * 2


def test_a_pod_without_a_name_has_no_event() -> None:
    """kubelet gives none where podInfoOnMount is off."""
    found, notes = written(event(""), event("team/a"))
    assert len(found) == 1
    assert notes == []


def test_too_many_at_once_are_dropped() -> None:
    events = PodEvents(lambda: 0.0, lambda *_, **__: None)

    async def scenario() -> int:
        writing = asyncio.create_task(events.write(StandsStill(), "n1"))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        for number in range(10_000):
            events.tell(event(f"team/pod-{number}"))
        queue = events._queue
        assert queue is not None
        size = queue.qsize()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        return size

    assert asyncio.run(scenario()) == 256


class StandsStill:
    """An API server that never answers."""

    async def create(self, path: str, document: Json) -> Json:
        await asyncio.Event().wait()
        return {}


def test_a_record_of_the_volume_is_an_annotation() -> None:
    record = PublishRecord(volume="v", at=5.0, seconds=2.0)

    async def made() -> PublishRecord:
        return record

    (found,), _ = written(PodEvent("uid-1", "team/web-0", "ModelMounted", "mounted", made))
    assert parse_record(found["metadata"]["annotations"][ANNOTATION]) == record
