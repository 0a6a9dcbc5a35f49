"""The cache's side of the controller: labels, taint, status and events, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from datetime import UTC, datetime
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from cache_agent.api.kube.refusals import Conflict
from cache_agent.api.shared_names import STARTUP_TAINT, node_label
from modelimage.errors import RateLimited, Unreachable, WeightyardError
from tests.examples import examples
from tests.servers.process import until
from tests.workspace.controller import caches
from tests.workspace.controller.direct import DirectApi
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.living import control, make_runner
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.node_caches.cache_view import CACHE, MODEL, NODE, Key
from workspace.controller.node_caches.cached_model_controller import CacheRunner
from workspace.controller.observation.node_labels import NodeLabels
from workspace.controller.process.queue import WorkQueue

Json = dict[str, Any]
IMAGES = [f"registry.example/m:{number}" for number in range(3)]
LABELS = {image: node_label(caches.key_of(image)) for image in IMAGES}


def clock() -> datetime:
    return datetime(2026, 1, 31, 22, tzinfo=UTC)


def condition(api: FakeApi, name: str, kind: str) -> Json:
    status = api.get(MODEL, "", name).get("status") or {}
    return next((each for each in status.get("conditions", ()) if each["type"] == kind), {})


def tell(api: FakeApi, name: str, **parts: Any) -> None:
    """An agent writes its report."""
    document = caches.node_cache(name, **parts)
    if (CACHE, "", name) in api.objects:
        api.update(CACHE, "", name, lambda d: d.update(status=document["status"]))
    else:
        api.create(document)


class PatientQueue(WorkQueue[Key]):
    """Keeps what is to come later until a test says that it is later."""

    def __init__(self) -> None:
        super().__init__()
        self.later: set[Key] = set()

    def add_later(self, key: Key, seconds: float) -> None:
        self.later.add(key)


class CacheMachine(RuleBasedStateMachine):
    """Edits, agents, nodes that come and go, lost answers and restarts, in any order; then all comes to rest."""

    NODES = ("n1", "n2")
    MODELS = ("chat", "code")

    def __init__(self) -> None:
        super().__init__()
        self.api = FakeApi()
        self.direct = DirectApi(self.api)
        self.holdings: dict[str, dict[str, str]] = {}  # node -> image -> state
        for name in self.NODES:
            self.api.create(caches.node(name, starting=True))
            self._report(name)
        self.api.create(caches.cached_model("chat", IMAGES[0], pin=True))
        self._start()
        self._rest()

    @rule()
    def _start(self) -> None:
        """A controller, perhaps the next one: it knows what a list tells, and hears what happens from then on."""
        self.runner = CacheRunner(cast(KubernetesApi, self.direct), now=clock)
        self.queue = self.runner.queue = PatientQueue()
        self.untold: deque[tuple[str, Json]] = deque()
        self.api.watchers[:] = [lambda event, document: self.untold.append((event, document))]
        for kind in (MODEL, CACHE, NODE):
            for each in self.api.list(kind):
                self.runner.seen(each)
        for key in [
            *((MODEL, m) for m in self.runner.view.models),
            *((NODE, n) for n in self.runner.view.nodes),
        ]:
            self.queue.add(key)

    @rule(name=st.sampled_from(MODELS), image=st.sampled_from(IMAGES), pin=st.booleans())
    def want(self, name: str, image: str, pin: bool) -> None:
        spec = caches.cached_model(name, image, pin=pin)
        if (MODEL, "", name) in self.api.objects:
            self.api.update(MODEL, "", name, lambda d: d.update(spec=spec["spec"]))
        else:
            self.api.create(spec)

    @rule(name=st.sampled_from(MODELS))
    def unwant(self, name: str) -> None:
        if (MODEL, "", name) in self.api.objects:
            self.api.delete(MODEL, "", name)

    @rule(name=st.sampled_from(NODES), starting=st.booleans())
    def join(self, name: str, starting: bool) -> None:
        if (NODE, "", name) not in self.api.objects:
            self.api.create(caches.node(name, starting=starting))

    @rule(name=st.sampled_from(NODES))
    def leave(self, name: str) -> None:
        for kind in (NODE, CACHE):
            if (kind, "", name) in self.api.objects:
                self.api.delete(kind, "", name)
        self.holdings.pop(name, None)

    @rule(
        name=st.sampled_from(NODES), image=st.sampled_from(IMAGES),
        state=st.sampled_from(["Ready", "Releasing", "Gone"]),
    )  # fmt: skip
    def hold(self, name: str, image: str, state: str) -> None:
        found = self.holdings.setdefault(name, {})
        found.pop(image, None)
        if state != "Gone":
            found[image] = state
        self._report(name)

    def _report(self, name: str) -> None:
        images = self.holdings.get(name, {})
        wanted = [
            caches.report(
                each["metadata"]["name"],
                "Ready" if images.get(each["spec"]["image"]) == "Ready" else "Fetching",
                generation=each["metadata"]["generation"],
                uid=each["metadata"]["uid"],
            )
            for each in self.api.list(MODEL)
        ]
        models = [caches.held(image, state) for image, state in images.items()]
        tell(self.api, name, desired=tuple(wanted), models=tuple(models))

    @rule(name=st.sampled_from(NODES), label=st.sampled_from(sorted(LABELS.values())))
    def meddle(self, name: str, label: str) -> None:
        """Somebody puts a label on by hand."""
        if (NODE, "", name) in self.api.objects:
            self.api.update(
                NODE, "", name, lambda d: d["metadata"]["labels"].update({label: "ready"})
            )

    @rule(
        late=st.booleans(), fault=st.sampled_from([Conflict("409"), RateLimited("429"), Unreachable("gone")])
    )  # fmt: skip
    def fault(self, fault: Exception, late: bool) -> None:
        """The next write fails, or is done and its answer gets lost."""
        self.direct.faults.append((fault, late))

    @rule(count=st.integers(1, 5))
    def hear(self, count: int) -> None:
        """Watches tell some of what happened, late as they are."""
        for _ in range(min(count, len(self.untold))):
            event, document = self.untold.popleft()
            if document["kind"] in (MODEL, CACHE, NODE):
                self.runner.seen(document, deleted=event == "DELETED")

    @rule(count=st.integers(1, 5))
    def work(self, count: int) -> None:
        """Work on some keys; one whose work fails comes back."""
        for _ in range(min(count, len(self.queue))):
            key = asyncio.run(self.queue.take())
            try:
                asyncio.run(self.runner.reconcile(key))
            except WeightyardError:
                self.queue.add(key)
            self.queue.done(key)

    def _rest(self) -> None:
        while self.untold or len(self.queue):
            self.hear(len(self.untold))
            self.work(len(self.queue))
            for key in self.queue.later:
                self.queue.add(key)
            self.queue.later.clear()

    @rule()
    def all_comes_to_rest(self) -> None:
        self.direct.faults.clear()
        for name in self.NODES:
            if (CACHE, "", name) in self.api.objects:
                self._report(name)
        self._rest()
        for each in self.api.list(NODE):
            self._check_node(each)
        for each in self.api.list(MODEL):
            self._check_model(each)
        before = len(self.api.writes)
        self._start()
        self._rest()
        assert len(self.api.writes) == before, self.api.writes[before:]

    def teardown(self) -> None:
        self.all_comes_to_rest()

    def _check_node(self, document: Json) -> None:
        name, marks = document["metadata"]["name"], NodeLabels.from_document(document)
        held = self.holdings.get(name, {})
        assert set(marks.labels) == {LABELS[i] for i, state in held.items() if state == "Ready"}
        assert set(marks.annotations) == set(marks.labels)
        pinned = [m["spec"]["image"] for m in self.api.list(MODEL) if m["spec"].get("pin")]
        if (CACHE, "", name) in self.api.objects and all(held.get(i) == "Ready" for i in pinned):
            assert not marks.starting
        assert any(each["key"] == "other" for each in document["spec"]["taints"])

    def _check_model(self, document: Json) -> None:
        name, image = document["metadata"]["name"], document["spec"]["image"]
        nodes = [
            n["metadata"]["name"] for n in self.api.list(NODE)
            if (CACHE, "", n["metadata"]["name"]) in self.api.objects
        ]  # fmt: skip
        ready = [n for n in nodes if self.holdings.get(n, {}).get(image) == "Ready"]
        status = document["status"]
        assert (status["nodesDesired"], status["nodesReady"]) == (len(nodes), len(ready))
        found = condition(self.api, name, "Ready")
        assert (found["status"] == "True") == (bool(nodes) and len(ready) == len(nodes))
        assert found["observedGeneration"] == document["metadata"]["generation"]


TestCaching = CacheMachine.TestCase
TestCaching.settings = settings(max_examples=examples(100), stateful_step_count=20, deadline=None)


@contextlib.asynccontextmanager
async def controller(http: HttpApi) -> Any:
    """The cache's side as it runs: its watches, real HTTPS."""
    async with http.client() as client:
        api = KubernetesApi(client)
        caching = CacheRunner(api)
        working = asyncio.create_task(control(client, make_runner(api), caching))
        try:
            yield caching
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


def node(api: FakeApi, name: str = "n1") -> NodeLabels:
    return NodeLabels.from_document(api.get(NODE, "", name))


def test_a_new_node_warms_is_labelled_loses_its_taint_and_gives_the_label_back_before_a_deletion() -> (
    None
):
    image = IMAGES[0]

    async def scenario() -> None:
        api = FakeApi()
        api.create(caches.node("n1", starting=True))
        api.create(caches.cached_model("chat", image, pin=True))
        async with HttpApi(api) as http, controller(http) as caching:
            await until(
                lambda: condition(api, "chat", "Ready").get("reason") == "NoNode", what="NoNode"
            )
            http.faults.extend([409, 429, 500])
            fetching = caches.report("chat", "Fetching", bytesDone=1, bytesTotal=2)
            tell(api, "n1", desired=(fetching,), PinnedReady="False")
            await until(
                lambda: condition(api, "chat", "Ready").get("reason") == "Fetching", what="Fetching"
            )
            assert node(api) == NodeLabels(starting=True)
            http.watches.close()
            tell(api, "n1", desired=(caches.report("chat"),), models=(caches.held(image),))
            await until(
                lambda: condition(api, "chat", "Ready").get("status") == "True", what="Ready"
            )
            await until(
                lambda: not node(api).starting and LABELS[image] in node(api).labels, what="label"
            )
            # The agent wants to delete it: it says so, and waits for the label to go.
            tell(
                api,
                "n1",
                desired=(caches.report("chat"),),
                models=(caches.held(image, "Releasing"),),
            )
            await until(lambda: not node(api).labels, what="end of the label")
            await until(lambda: not len(caching.queue), what="empty queue")
            before = http.writes()
            for key in ((MODEL, "chat"), (NODE, "n1")):
                await caching.reconcile(key)
            assert http.writes() == before
        events = api.list("Event")
        assert [each["reason"] for each in events] == ["Cached"]
        assert events[0]["involvedObject"]["name"] == "chat"
        assert STARTUP_TAINT not in str(api.get(NODE, "", "n1"))

    asyncio.run(scenario())


def test_a_controller_that_starts_takes_no_label_before_it_knows_everything() -> None:
    async def scenario() -> None:
        api = FakeApi()
        api.create(caches.node("n1"))
        tell(api, "n1", models=(caches.held(IMAGES[0]),))
        async with HttpApi(api) as http:
            async with controller(http):
                await until(lambda: node(api).labels, what="label")
            before = len(api.writes)
            async with controller(http) as caching:
                await until(
                    lambda: caching.view.caches and not len(caching.queue), what="empty queue"
                )
            assert len(api.writes) == before

    asyncio.run(scenario())


def test_whom_a_change_concerns() -> None:
    view = CacheRunner(cast(KubernetesApi, None)).view
    chat, n1 = (MODEL, "chat"), (NODE, "n1")
    model = caches.cached_model("chat", pin=True)
    assert view.put(model) == ({chat}, set())
    assert view.put(caches.node("n1", starting=True)) == ({n1, chat}, set())
    assert view.put(caches.node_cache("n1")) == ({n1, chat}, set())
    assert view.put(caches.node_cache("n1")) == (set(), set())
    assert view.put(caches.node("n1", starting=True, pool="a")) == ({n1, chat}, set())
    model["metadata"]["generation"] = 2
    assert view.put(model) == ({chat, n1}, set())  # the node's taint may have to stay, or may go
    assert view.put(caches.node("n1", pool="a")) == ({n1}, set())
    model["metadata"]["generation"] = 3
    assert view.put(model) == ({chat}, set())
    assert view.drop(caches.node_cache("n1")) == {n1, chat}
    assert view.drop(caches.node("n1")) == {chat}
    assert view.drop(model) == set()


def test_how_far_it_is_is_written_now_and_then_only() -> None:
    view = CacheRunner(cast(KubernetesApi, None)).view
    view.put(caches.node("n1"))
    view.put(caches.cached_model("chat"))
    view.put(caches.node_cache("n1", desired=(caches.report("chat", "Fetching", bytesDone=1),)))
    now, later = view.put(
        caches.node_cache("n1", desired=(caches.report("chat", "Fetching", bytesDone=2),))
    )
    assert (now, later) == (set(), {(MODEL, "chat")})
    now, later = view.put(caches.node_cache("n1", desired=(caches.report("chat"),)))
    assert now == {(MODEL, "chat"), (NODE, "n1")}
    assert later == set()
