"""What kubelets and agents say of volumes in Events, in the Workspace's conditions, as long as a pod waits."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.servers import process
from tests.workspace.controller.observation.test_pod_problems import strike, waiting
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_reconcile import condition
from tests.workspace.controller.test_running import running
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.observation.mount_news import MountEvents, parse_event
from workspace.controller.observation.objects import waits_for_volumes
from workspace.render import names

Json = dict[str, Any]
NUMBERS = itertools.count()
CREATING = waiting("ContainerCreating")
PREFIX = 'MountVolume.SetUp failed for volume "model" : '
DENIED = f"{PREFIX}rpc error: code = PermissionDenied desc = registry.example refuses team/m (Name a pull secret.)"
PULLING = f"{PREFIX}rpc error: code = Aborted desc = 12% of 4.1 GiB, 3 min left"
SUMMARY = "Unable to attach or mount volumes: unmounted volumes=[model]: timed out waiting for the condition"
NO_DRIVER = (
    f"{PREFIX}kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name cache.weightyard.dev not found "
    "in the list of registered CSI drivers"
)


def event(
    pod: Json, message: str, *, reason: str = "FailedMount", at: str = "2026-01-01T00:00:00Z",
    source: str = "kubelet",
) -> Json:  # fmt: skip
    metadata = pod["metadata"]
    about = {
        "apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"],
        "uid": metadata["uid"],
    }  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Event", "involvedObject": about, "reason": reason, "message": message,
        "metadata": {"name": f"e{next(NUMBERS)}", "namespace": metadata["namespace"]},
        "type": "Warning", "lastTimestamp": at, "source": {"component": source},
    }  # fmt: skip


POD: Json = {
    "kind": "Pod", "metadata": {"name": "p", "namespace": "team", "uid": "u"}, "spec": {"nodeName": "n1"},
    "status": CREATING,
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "words", "failed"),
    [
        (DENIED, "registry.example refuses team/m (Name a pull secret.)", True),
        (f"(combined from similar events): {DENIED}", "registry.example refuses team/m (Name a pull secret.)", True),
        (PULLING, "12% of 4.1 GiB, 3 min left", False),
        (f'{PREFIX}secret "pull" not found', 'secret "pull" not found', True),
        (f"{PREFIX}failed to sync secret cache: timed out waiting for the condition",
         "failed to sync secret cache: timed out waiting for the condition", False),
        (f'{PREFIX}object "team"/"ca" not registered', 'object "team"/"ca" not registered', False),
        (NO_DRIVER, NO_DRIVER.removeprefix(PREFIX), True),
        ("x" * 9000, "x" * 500, True),
    ],
)  # fmt: skip
def test_the_words_of_whoever_knows_are_kept(message: str, words: str, failed: bool) -> None:
    news = parse_event(event(POD, message))
    assert news is not None
    assert (news.words, news.failed) == (words, failed)


@pytest.mark.parametrize(
    "told",
    [
        event(POD, "Back-off pulling image", reason="BackOff"),
        event(POD, "a lie", reason="PullingModel", source="someone"),
        {},
    ],
)
def test_events_about_other_things_tell_nothing(told: Json) -> None:
    assert parse_event(told) is None
    assert not MountEvents().put(told)


@given(order=st.permutations([(DENIED, "2026-01-01T00:00:05Z"), (PULLING, "2026-01-01T00:01:00Z"),
                              (SUMMARY, "2026-01-01T00:02:00Z")]))  # fmt: skip
def test_the_newest_event_counts_in_whatever_order_they_are_listed(
    order: list[tuple[str, str]],
) -> None:
    known = MountEvents()
    for message, at in order:
        known.put(event(POD, message, at=at))
    found = known.of("team", "u")
    assert found is not None
    assert found.words == "12% of 4.1 GiB, 3 min left"


def test_the_news_of_pods_are_bounded_and_repeated_news_is_none() -> None:
    known = MountEvents()
    for number in range(5000):
        pod = {**POD, "metadata": {**POD["metadata"], "uid": f"u{number}"}}
        assert known.put(event(pod, DENIED))
        assert not known.put(event(pod, DENIED, at="2026-01-01T00:00:09Z"))
    kept = [number for number in range(5000) if known.of("team", f"u{number}")]
    assert kept == list(range(3000, 5000))
    known.forget("team", "u4999")
    assert known.of("team", "u4999") is None


def test_events_of_one_namespace_say_and_displace_nothing_of_another() -> None:
    cache = WatchCache()
    cache.put({**POD, "metadata": {**POD["metadata"], "labels": {names.WORKSPACE: NAME}}})
    assert cache.put({**event(POD, DENIED), "kind": "Event"}) == {("team", NAME)}
    for number in range(3000):
        uid = "u" if number == 0 else f"u{number}"
        forged = event(
            {**POD, "metadata": {**POD["metadata"], "uid": uid}}, "a lie", at="9999-01-01T00:00:00Z"
        )
        forged["metadata"]["namespace"] = "other"
        assert cache.put({**forged, "kind": "Event"}) == set()
    assert cache.mounts([POD])["u"].words == "registry.example refuses team/m (Name a pull secret.)"


def test_a_uid_is_no_place_for_megabytes() -> None:
    metadata = {**POD["metadata"], "uid": "u" * 1_000_000}
    assert not MountEvents().put(event({**POD, "metadata": metadata}, DENIED))


@pytest.mark.parametrize(
    ("changed", "waits"),
    [
        ({}, True),
        ({"status": {}}, True),
        ({"spec": {}}, False),
        ({"status": waiting("ImagePullBackOff")}, False),
        ({"status": {**CREATING, "phase": "Failed"}}, False),
        ({"status": {**CREATING, "initContainerStatuses": [{"state": {"running": {}}}]}}, False),
        ({"status": {**CREATING, "conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]}}, False),
        ({"status": waiting("CrashLoopBackOff", restartCount=2)}, False),
    ],
)  # fmt: skip
def test_events_explain_a_pod_that_has_no_volumes_yet(changed: Json, waits: bool) -> None:
    assert waits_for_volumes({**POD, **changed}) is waits


CASES = [
    (DENIED, "FailedMount", ["registry.example refuses team/m (Name a pull secret.)"]),
    (NO_DRIVER, "FailedMount", ["no running agent"]),
    (PULLING, "Starting", ["waits for its volume: 12% of 4.1 GiB, 3 min left."]),
]


@pytest.mark.parametrize(("message", "reason", "says"), CASES)
def test_a_server_that_waits_for_its_volume_says_why_until_it_has_it(
    message: str, reason: str, says: list[str]
) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.add_node("n1")
        cluster.create_workspace(replicas=1)

        async def sees(wanted: str, words: list[str]) -> None:
            def seen() -> bool:
                found = condition(cluster, "Available")
                return found.get("reason") == wanted and all(
                    each in found["message"] for each in words
                )

            await process.until(seen, what=f"{wanted} {words}")

        async with running(cluster):
            await process.until(lambda: bool(_step(cluster).servers()), what="a server")
            pod = _wait_for_volumes(cluster, cluster.servers()[0])
            cluster.api.create(event(pod, message))
            await sees(reason, says)
            if reason == "FailedMount":
                assert condition(cluster, "Ready")["reason"] == reason
            strike(cluster, waiting("ImagePullBackOff", "no such image"), [pod])
            await sees("ImagePullBackOff", ["no such image"])
            assert condition(cluster, "Cached")["status"] == "True"

    asyncio.run(scenario())


def _wait_for_volumes(cluster: Cluster, pod: Json) -> Json:
    """The pod on a node whose kubelet has begun with its volumes."""

    def place(document: Json) -> None:
        document["spec"]["nodeName"] = "n1"
        document["status"] = CREATING

    return cluster.api.update("Pod", NAMESPACE, pod["metadata"]["name"], place, manager="kubelet")


def _step(cluster: Cluster) -> Cluster:
    cluster.step()
    return cluster


@pytest.mark.parametrize(("told", "reason", "says"), [
    ({"message": DENIED}, "FetchFailed", "refuses team/m"),
    ({"message": PULLING}, "Fetching", "12% of 4.1 GiB"),
    ({"message": "team/m: waiting for 3.6 GiB", "reason": "PullingModel", "source": "weightyard-agent"},
     "Fetching", "waiting for 3.6 GiB"),
])  # fmt: skip
def test_a_node_that_fetches_says_how_far_it_is_and_what_fails(
    told: Json, reason: str, says: str
) -> None:
    """Told by a pod that brings the model to its node, before any server exists."""

    def warming(cluster: Cluster) -> list[Json]:
        return cluster.api.list("Pod", NAMESPACE, names.selector(NAME, names.PREWARM))

    async def scenario() -> None:
        cluster = Cluster()
        cluster.add_node("n1")
        cluster.create_workspace(replicas=1)
        async with running(cluster):
            await process.until(
                lambda: (
                    warming(cluster) and "status" in cluster.api.get("Workspace", NAMESPACE, NAME)
                ),
                what="a pre-warm pod and a status",
            )
            pod = _wait_for_volumes(cluster, warming(cluster)[0])
            cluster.api.create(event(pod, **told))

            def seen() -> bool:
                found = condition(cluster, "Cached")
                return found.get("reason") == reason and says in found["message"]

            await process.until(seen, what=says)

    asyncio.run(scenario())
