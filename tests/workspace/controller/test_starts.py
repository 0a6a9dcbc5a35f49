"""The timeline of a server's start: from its pod, Events, its log and its metrics, into status and metrics."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cache_agent.api.publish_record import ANNOTATION, PublishRecord, TierBytes, parse_record
from tests.workspace.controller.observation.test_mount_news import event
from tests.workspace.controller.rbac import Rights
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_running import prepared, running, until
from tests.workspace.test_engine_log import BEGAN, LOG
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.loops.start_watch import StartWatch
from workspace.controller.observation.pod_news import PublishedVolumes
from workspace.controller.observation.pod_start import (
    NO_NEWS,
    StartNews,
    is_watched,
    seconds_of,
    startup_of,
)
from workspace.engine_log import read_log, stamped_lines
from workspace.server_metrics import has_generated
from workspace.startup import StageName, Startup

Json = dict[str, Any]
RECORD = PublishRecord(
    volume="v1", at=BEGAN + 12, seconds=10,
    tiers=(TierBytes(tier="peer", bytes=300, seconds=9.5), TierBytes(tier="disk", bytes=100)),
)  # fmt: skip
NEWS = StartNews(read_log(stamped_lines(LOG)).ends, log_read=True, first_token=BEGAN + 100)


def at(seconds: int) -> str:
    return f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z"


def a_condition(kind: str, seconds: int, status: str = "True") -> Json:
    return {"type": kind, "status": status, "lastTransitionTime": at(seconds)}


def pod(*, restarted: int | None = None, ready: int | None = 84) -> Json:
    """A server's pod: created at 0, placed at 2, its container started at 15, and ready at 84 seconds."""
    container = {
        "name": "server", "state": {"running": {"startedAt": at(restarted or 15)}},
        "restartCount": 1 if restarted else 0,
    }  # fmt: skip
    conditions = [a_condition("PodScheduled", 2), a_condition("PodReadyToStartContainers", 13)]
    if ready is not None:
        conditions.append(a_condition("Ready", ready))
    return {
        "kind": "Pod", "spec": {"nodeName": "n1"},
        "metadata": {"name": "chat-1", "namespace": NAMESPACE, "uid": "u", "creationTimestamp": at(0)},
        "status": {"conditions": conditions, "containerStatuses": [container]},
    }  # fmt: skip


def stages(entry: Startup | None) -> dict[str, float]:
    assert entry is not None
    return {each.name: each.seconds for each in entry.stages if each.tier is None}


def test_a_start_has_all_its_stages() -> None:
    entry = startup_of(pod(), 3, published=[RECORD], news=NEWS)
    assert entry is not None
    assert stages(entry) == {
        "node": 2, "volume": 10, "image": 3, "process": 5.5, "engine": 9.7, "weights": 13.8, "compile": 20,
        "warm-up": 16, "health": 4, "first-token": 16,
    }  # fmt: skip
    volume = [(each.tier, each.bytes, each.seconds) for each in entry.stages if each.name == "volume"]  # fmt: skip
    assert volume == [(None, 400, 10), ("disk", 100, 0), ("peer", 300, 9.5)]
    assert (entry.version, entry.pod, entry.node) == (3, "chat-1", "n1")
    assert (entry.total, entry.current) == (84, None)


def test_without_agent_and_log_stages_are_told_together() -> None:
    entry = startup_of(pod(), 1, news=StartNews(log_read=True))
    assert stages(entry) == {"node": 2, "volume": 11, "image": 2, "health": 69}


def test_a_start_under_way_says_what_it_does_now() -> None:
    entry = startup_of(pod(ready=None), 1, news=StartNews({StageName.PROCESS: BEGAN + 20}))
    assert entry is not None
    assert (entry.current, entry.total) == ("engine", None)


def test_a_restarted_container_is_a_start_of_its_own() -> None:
    before = startup_of(pod(), 1, news=NEWS)
    again = startup_of(pod(restarted=200, ready=230), 1, news=replaced(NEWS), before=before)
    assert again is not None
    assert again.started_at == at(200)
    assert stages(again) == {"health": 30}
    crashed = pod(restarted=200)
    crashed["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    assert startup_of(crashed, 1, before=before) == before


def replaced(news: StartNews) -> StartNews:
    return StartNews(news.log, log_read=True)


@given(st.booleans(), st.booleans(), st.booleans())
def test_what_was_known_stays_when_events_and_logs_are_gone(
    records: bool, log: bool, token: bool
) -> None:
    """Law: with the entry as `before`, the next call returns it again; also when all but the pod is forgotten."""
    news = StartNews(NEWS.log if log else {}, log_read=True, first_token=BEGAN + 99 if token else None)  # fmt: skip
    published = [RECORD] if records else []
    entry = startup_of(pod(), 1, published=published, news=news)
    assert startup_of(pod(), 1, published=published, news=news, before=entry) == entry
    assert startup_of(pod(), 1, before=entry) == entry
    # A server that wasn't ready for a while starts no second time.
    assert startup_of(pod(ready=900), 1, before=entry) == entry


def test_a_pod_is_watched_until_its_first_token() -> None:
    known = startup_of(pod(), 1, news=StartNews(log_read=True))
    done = startup_of(pod(), 1, news=NEWS)
    assert is_watched(pod(), None, BEGAN, patience=60)
    assert is_watched(pod(), known, BEGAN + 84 + 59, patience=60)
    assert not is_watched(pod(), known, BEGAN + 84 + 61, patience=60)
    assert not is_watched(pod(), done, BEGAN + 84, patience=60)


@given(st.recursive(st.none() | st.text() | st.floats(), st.lists))
def test_what_is_no_time_is_none(value: object) -> None:
    assert seconds_of(value) is None or isinstance(value, str)


def an_event(value: object, *, source: str = "weightyard-agent") -> Json:
    found = event(pod(), "mounted", reason="ModelMounted", source=source)
    found["metadata"]["annotations"] = {ANNOTATION: value}
    return found


def test_records_of_a_pod_are_kept_once_each() -> None:
    volumes = PublishedVolumes()
    other = RECORD.model_copy(update={"volume": "v2"})
    assert volumes.put(an_event(RECORD.to_annotation()))
    assert not volumes.put(an_event(RECORD.to_annotation()))
    assert volumes.put(an_event(other.to_annotation()))
    assert volumes.of(NAMESPACE, "u") == (RECORD, other)
    assert not volumes.put(an_event(RECORD.to_annotation(), source="a stranger"))
    volumes.forget(NAMESPACE, "u")
    assert volumes.of(NAMESPACE, "u") == ()


@pytest.mark.parametrize(
    "text",
    [
        None, 3, "", "[]", "{}", '{"volume":"v","at":1,"seconds":-1}', '{"volume":"v","at":NaN,"seconds":1}',
        '{"volume":"v","at":1,"seconds":1,"tiers":[{"tier":"moon","bytes":1}]}', "x" * 5000,
        f'{{"volume":"{"v" * 200}","at":1,"seconds":1}}',
    ],
)  # fmt: skip
def test_what_is_no_record_is_none(text: object) -> None:
    assert parse_record(text) is None


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("vllm:generation_tokens_total 0.0\n", False),
        ('a 1\nvllm:generation_tokens_total{model_name="m"} 0.0\nb 1\n', False),
        ('a 1\nvllm:generation_tokens_total{model_name="m"} 10.0\n', True),
        ("sglang:generation_tokens_total 1e+06\n", True),
        ("vllm:generation_tokens_total_created 17\n# vllm:generation_tokens_total 1\n", False),
    ],
)
def test_a_token_is_found_in_a_page(page: str, found: bool) -> None:
    assert has_generated(page) == found


def test_a_controller_reads_log_and_metrics_into_the_status() -> None:
    """Over HTTP, with the log of vLLM and a page of its metrics; counted once."""
    tokens = {"count": 0}

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=f"vllm:generation_tokens_total {tokens['count']}.0\n")

    async def scenario() -> None:
        async with served(page) as port:
            await follow(prepared(replicas=1, runtime={"port": port}))

    async def follow(cluster: Cluster) -> None:
        async with running(cluster) as (http, runner), http.client() as client:
            runner._now = lambda: datetime.fromtimestamp(BEGAN + 200, UTC)
            await until(cluster, lambda: bool(cluster.ready_servers()))
            name = cluster.ready_servers()[0]["metadata"]["name"]
            http.logs[NAMESPACE, name] = LOG
            cluster.api.update("Pod", NAMESPACE, name, start)
            async with aiohttp.ClientSession() as session:
                watch = StartWatch(runner, KubernetesApi(client), session, lambda: BEGAN + 200)
                watching = asyncio.create_task(watch.run())
                await until(cluster, lambda: "total" in entry(cluster))
                assert entry(cluster)["stages"][-1]["name"] == "health"
                tokens["count"] = 4
                watch_again(watch)
                await until(cluster, lambda: entry(cluster)["stages"][-1]["name"] == "first-token")
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            counted = samples_of(runner.metrics.exposition()[0].decode())
            assert counted["start_seconds_count"] == 1
            assert counted["start_stage_seconds_count", "weights"] == 1
            assert counted["start_stage_seconds_count", "first-token"] == 1
            assert counted["first_token_seconds_count", "unknown"] == 1
            assert not runner.starts.news

    asyncio.run(scenario())


def test_without_the_right_to_read_logs_the_rest_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with running(cluster) as (http, runner), http.client() as client:
            runner._now = lambda: datetime.fromtimestamp(BEGAN + 200, UTC)
            await until(cluster, lambda: bool(cluster.ready_servers()))
            name = cluster.ready_servers()[0]["metadata"]["name"]
            cluster.api.update("Pod", NAMESPACE, name, start)
            http.callers.allows = refusing = Everything("pods/log")
            async with aiohttp.ClientSession() as session:
                watch = StartWatch(runner, KubernetesApi(client), session, lambda: BEGAN + 200)
                watching = asyncio.create_task(watch.run())
                await until(cluster, lambda: "total" in entry(cluster))
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            assert [each["name"] for each in entry(cluster)["stages"]][-1] == "health"
            assert refusing.refused == {("get", "", "pods/log")}
        assert "without the server's own stages" in caplog.text

    asyncio.run(scenario())


class Everything(Rights):
    """All rights but one resource's."""

    def __init__(self, refused: str) -> None:
        super().__init__(set())
        self._resource = refused

    def __call__(self, request: web.Request) -> bool:
        if not request.path.endswith(self._resource.rpartition("/")[2]):
            return True
        return super().__call__(request)


@asynccontextmanager
async def served(page: Any) -> AsyncIterator[int]:
    """A server's metrics page on a loopback port."""
    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield int(runner.addresses[0][1])
    await runner.cleanup()


def start(document: Json) -> None:
    status = copy.deepcopy(pod()["status"])
    document["status"] = {**status, "phase": "Running", "podIP": "127.0.0.1"}
    document["metadata"]["creationTimestamp"] = at(0)


def watch_again(watch: StartWatch) -> None:
    """The clock of this test stands still, so that nothing would ever be due again."""
    watch._due.clear()


def entry(cluster: Any) -> Json:
    found = cluster.api.get("Workspace", NAMESPACE, NAME).get("status", {}).get("startup", [])
    return found[0] if found else {}


def samples_of(text: str) -> dict[Any, float]:
    prefix = "weightyard_controller_"
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            labels = each.labels
            name, stage = each.name.removeprefix(prefix), labels.get("stage") or labels.get("tier")
            found[(name, stage) if stage else name] = each.value
    return found


def test_nothing_is_known_of_a_pod_without_times() -> None:
    assert startup_of({"metadata": {"name": "p"}}, 1, news=NO_NEWS) is None
