"""The controller's smaller parts: what it remembers, in which order it works, whose credentials it uses."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.access import Access
from modelimage.errors import AccessDenied, InvalidInput, NotFound
from modelimage.registry.credentials import BasicCredential
from tests.workspace import samples
from tests.workspace.controller import caches
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.living import resolve
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.cluster.secrets import NamespacedResolver
from workspace.controller.loops.scaling_loop import ScrapedServer, Targets, find_targets, policy_of
from workspace.controller.node_caches.cache_view import ClusterView
from workspace.controller.observation.compare import holds, with_intent
from workspace.controller.observation.nodes import KubeNode, read_rate
from workspace.controller.process.queue import WorkQueue
from workspace.controller.runner import Runner
from workspace.render import names
from workspace.render.routing import SystemSettings
from workspace.scaler import Policy
from workspace.schema import Resources

Json = dict[str, Any]


def pod(name: str, *, workspace: str = "chat", **more: Any) -> Json:
    labels = names.selector(workspace, names.SERVER)
    metadata = {
        "name": name,
        "namespace": "team-a",
        "uid": f"uid-{name}",
        "labels": labels,
        "managedFields": [{"x": "y"}],
    }
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata} | more


def node(name: str, **more: Any) -> Json:
    status = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {}}
    return {"kind": "Node", "metadata": {"name": name}, "spec": {}, "status": status} | more


KEY = ("team-a", "chat")


def test_the_cache_tells_whom_a_change_concerns() -> None:
    cache = WatchCache()
    assert cache.put(samples.document()) == {KEY}
    assert cache.put(samples.document()) == set()
    assert cache.put(pod("a")) == {KEY}
    assert cache.put(pod("a")) == set()
    assert cache.put(pod("a", spec={"nodeName": "n"})) == {KEY}
    assert cache.put({**pod("b"), "metadata": {"name": "b", "namespace": "team-a"}}) == set()
    assert [each["metadata"]["name"] for each in cache.objects(KEY)] == ["a"]
    assert "managedFields" not in cache.objects(KEY)[0]["metadata"]
    assert cache.drop(pod("a")) == {KEY}
    assert cache.drop(pod("a")) == set()
    assert cache.drop(samples.document()) == set()
    assert cache.workspaces() == []
    assert cache.workspace(KEY) is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_nothing_is_kept_of_what_is_gone(order: tuple[int, ...]) -> None:
    """Workspaces come and go for years, and the events about them and their objects in any order."""
    cache = WatchCache()
    there = [samples.document(), serving("chat"), pod("a")]
    for each in there:
        cache.put(each)
    left = [there[number] for number in order]
    while left:
        cache.drop(left.pop(0))
        for each in left:
            cache.put({**each, "seen": len(left)})
    tables = {each.name: getattr(cache, each.name) for each in fields(cache)}
    assert not {name for name, table in tables.items() if isinstance(table, dict) and table}


def test_a_runner_keeps_nothing_of_a_workspace_that_is_gone() -> None:
    runner = Runner(
        api=cast(KubernetesApi, None), cache=WatchCache(), resolver=resolve,
        environment=SystemSettings(),
    )  # fmt: skip
    found = [
        *vars(runner).values(),
        runner.wanted.replicas,
        runner.wanted.unread,
        runner.starts.watched,
    ]
    tables = [each for each in found if isinstance(each, dict | set)]
    assert len(tables) >= 8
    for table in tables:
        if isinstance(table, dict):
            table[KEY] = frozenset()
        else:
            table.add(KEY)
    asyncio.run(runner.reconcile(KEY))
    assert not any(KEY in table for table in tables)


def test_a_nodes_heartbeat_concerns_nobody() -> None:
    cache = WatchCache()
    cache.put(samples.document())
    assert cache.put(node("n")) == {KEY}
    beat = node("n")
    beat["status"]["conditions"][0]["lastHeartbeatTime"] = "now"
    beat["metadata"]["resourceVersion"] = "9"
    assert cache.put(beat) == set()
    assert cache.put(node("n", spec={"unschedulable": True})) == {KEY}
    assert cache.drop(node("n")) == {KEY}
    assert cache.nodes() == ()


IMAGE = "registry.example/m:1"
LABEL = names.node_label(caches.key_of(IMAGE))


def serving(workspace: str) -> Json:
    """A version of a Workspace that serves `IMAGE`."""
    metadata = {
        "name": f"{workspace}-1",
        "namespace": "team-a",
        "labels": {names.WORKSPACE: workspace},
    }
    return {
        "kind": "ControllerRevision", "metadata": metadata, "data": {"key": str(caches.key_of(IMAGE))},
    }  # fmt: skip


def test_what_a_node_holds_is_what_its_agent_says_and_concerns_those_that_serve_it() -> None:
    cache = WatchCache()
    for name in ("chat", "other"):
        cache.put(samples.document(name))
    cache.put(serving("chat"))
    labelled = node("n")
    labelled["metadata"]["labels"] = {LABEL: "ready"}
    cache.put(labelled)
    assert cache.nodes()[0].holds(LABEL)  # without an agent's word the label counts
    assert cache.put(caches.node_cache("n")) == {KEY}
    assert not cache.nodes()[0].holds(LABEL)
    told = caches.node_cache("n", models=(caches.held(IMAGE),))
    told["status"]["node"] = {"readBytesPerSecond": 1000}
    assert cache.put(told) == {KEY}
    assert cache.put(labelled) == set()  # the label only follows
    (found,) = cache.nodes()
    assert found.holds(LABEL)
    assert found.read_rate == 1000
    assert cache.put({**told, "status": {"desired": "no list"}}) == set()
    assert cache.drop(told) == {KEY}
    assert not cache.nodes()[0].holds(LABEL)


def test_the_startup_probe_waits_for_the_slowest_node_that_a_replica_could_get() -> None:
    def at(rate: float | None, name: str) -> KubeNode:
        return KubeNode(
            name, {"pool": name[0]}, (), {"nvidia.com/gpu": "1"}, usable=True, read_rate=rate
        )

    found = [at(2e9, "a1"), at(5e8, "a2"), at(None, "a3"), at(1e6, "b1")]
    assert read_rate(found, Resources(node_selector={"pool": "a"})) == 5e8
    assert read_rate(found, Resources(gpus=2)) is None
    assert read_rate([at(None, "a1")], Resources()) is None


def test_the_queue_gives_each_key_once_and_again_when_it_changed_meanwhile() -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue()
        for key in ("a", "b", "a"):
            queue.add(key)
        assert await queue.take() == "a"
        queue.add("a")
        assert await queue.take() == "b"
        queue.done("b")
        assert len(queue) == 1
        queue.done("a")
        assert await queue.take() == "a"
        queue.done("a")
        assert len(queue) == 0

    asyncio.run(scenario())


def test_of_several_delays_the_soonest_counts() -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add_later("a", 3600)
        queue.add_later("a", 0.01)
        queue.add_later("a", 3600)
        assert await queue.take() == "a"
        queue.add_later("b", 3600)
        queue.close()

    asyncio.run(scenario())


documents = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(documents)
def test_everything_holds_itself(document: Any) -> None:
    assert holds(document, document)


@given(st.dictionaries(st.sampled_from("abcd"), documents), st.sampled_from("efg"), documents)
def test_what_others_add_beside_ours_doesnt_matter(ours: Json, name: str, theirs: Any) -> None:
    assert holds({**ours, name: theirs}, ours)


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1), min_size=1), st.data())
def test_what_others_change_of_ours_does(ours: Json, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ours)))
    assert not holds({**ours, name: ours[name] + 1}, ours)
    assert not holds({k: v for k, v in ours.items() if k != name}, ours)


def test_the_intent_tells_what_is_no_longer_wanted_but_not_the_count() -> None:
    base = {"metadata": {"name": "a"}, "spec": {"replicas": 1, "x": 1, "y": 2}}
    less = {"metadata": {"name": "a"}, "spec": {"replicas": 5, "x": 1}}
    count = {"metadata": {"name": "a"}, "spec": {"replicas": 5, "x": 1, "y": 2}}
    marks = [
        with_intent(each)["metadata"]["annotations"][names.INTENT] for each in (base, less, count)
    ]
    assert marks[0] != marks[1]
    assert marks[0] == marks[2]


def test_load_is_read_from_ready_pods_of_either_address_family() -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    selector = {"matchLabels": names.selector("chat", names.SERVER)}
    old, new = (
        {"containers": [{"ports": [{"name": "http", "containerPort": n}]}]} for n in (8000, 9000)
    )
    objects = [
        pod("a", spec=new, status={**ready, "podIP": "10.0.0.1"}),
        pod("b", spec=new, status={**ready, "podIP": "fd00::1"}),
        pod("c", spec=new, status={"podIP": "10.0.0.3"}),
        pod("d", spec=old, status={**ready, "podIP": "10.0.0.4"}),
        {"kind": "Deployment", "metadata": {"name": "chat"}, "spec": {"replicas": 3, "selector": selector}},
    ]  # fmt: skip
    # A version is read at its own port, whatever the spec now says.
    workspace = samples.workspace(runtime={"port": 7000})
    assert find_targets(workspace, objects) == Targets(
        3,
        (
            ScrapedServer("uid-a", "http://10.0.0.1:9000"),
            ScrapedServer("uid-b", "http://[fd00::1]:9000"),
            ScrapedServer("uid-d", "http://10.0.0.4:8000"),
        ),
        None,
    )


def test_the_policy_is_the_specs_and_the_batch_is_the_servers() -> None:
    workspace = samples.workspace(
        scale={"min": 0, "max": 4, "queueDepth": 2}, runtime={"args": ["--max-num-seqs=32"]}
    )
    assert policy_of(workspace) == Policy(0, 4, 2, 15, 300, batch=32)
    derived = policy_of(workspace, ("--max-num-seqs", "64"))
    assert derived is not None
    assert derived.batch == 64
    assert policy_of(samples.workspace(replicas=2)) is None
    assert policy_of(samples.workspace(scale={"max": 2, "by": "hpa"})) is None


def secret(data: Json | None) -> Json:
    text = base64.b64encode(json.dumps(data).encode()).decode()
    return {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull", "namespace": "team-a"},
        "data": {".dockerconfigjson": text} if data is not None else {},
    }  # fmt: skip


MODEL = {"image": "127.0.0.1:1/team/llama:v1", "pullSecret": "pull"}


async def access_with(given_secret: Json | None) -> Access:
    """How registries would be reached for a Workspace with this pull secret in its namespace."""
    fake = FakeApi()
    if given_secret is not None:
        fake.create(given_secret)
    async with HttpApi(fake) as http, http.client() as client:
        resolver = NamespacedResolver(KubernetesApi(client), Access())
        return await resolver._access_of(samples.workspace(model=MODEL))


@pytest.mark.parametrize(
    ("given_secret", "error", "says"),
    [(None, NotFound, "pull"), (secret(None), InvalidInput, "holds no .dockerconfigjson")],
)
def test_a_pull_secret_that_cannot_serve_says_so(
    given_secret: Json | None, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        asyncio.run(access_with(given_secret))


def test_a_pull_secrets_credentials_are_used() -> None:
    auth = base64.b64encode(b"alice:wonderland").decode()
    access = asyncio.run(access_with(secret({"auths": {"127.0.0.1:1": {"auth": auth}}})))
    assert access.credentials.find("127.0.0.1:1", "team/llama") == BasicCredential(
        "alice", "wonderland"
    )
    assert access.credentials.find("other.example", "team/llama") is None


def test_no_program_that_a_tenant_names_is_run() -> None:
    access = asyncio.run(access_with(secret({"credHelpers": {"127.0.0.1:1": "evil"}})))
    with pytest.raises(AccessDenied, match="names the credential helper 'evil'"):
        access.credentials.find("127.0.0.1:1", "team/llama")


@pytest.mark.parametrize("where", ["oci:{}", "oci:{}/x:v1", "oci:///{}", "docker:x:v1", "{}"])
@pytest.mark.parametrize("field", ["model", "adapter"])
def test_files_and_engines_of_the_controller_are_never_looked_at(
    where: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(
        "workspace.controller.cluster.secrets.open_reader", lambda *args: opened.append(args)
    )
    image = where.format(tmp_path)
    given = {"model": {"image": image}} if field == "model" else {
        "model": {"image": "ghcr.io/a/b:v1"},
        "runtime": {"adapters": [{"name": "a", "image": image}]},
    }  # fmt: skip
    resolver = NamespacedResolver(cast(KubernetesApi, None), Access())
    with pytest.raises(InvalidInput):
        asyncio.run(resolver(samples.workspace(**given)))
    assert opened == []


def test_a_cached_model_in_a_layout_is_invalid() -> None:
    view = ClusterView()
    view.put(caches.cached_model("a", image="oci:/etc:v1"))
    assert isinstance(view.models["a"].model, InvalidInput)
