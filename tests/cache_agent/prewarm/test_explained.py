"""What `explain` tells of a model that is desired and isn't here: why, since when, and when it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from cache_agent.api.wire import ExplainView
from cache_agent.fetch.arrivals import SILENCE
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.values import PullSnapshot, PullState
from cache_agent.node.activity import Running
from cache_agent.node.desired_detail import RefusedDocument
from cache_agent.node.explanation import explain
from cache_agent.node.node import Node
from cache_agent.node.progress_text import describe
from cache_agent.prewarm.values import DesiredModel, FetchTarget
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.errors import NotFound, Unreachable
from modelimage.record import CHUNK_SIZE
from tests.cache_agent.faults import Away, BreaksAfter
from tests.cache_agent.images import MemoryImage, make_record, noise, simple_image
from tests.cache_agent.nodes import PATIENT, NodeFactory, pull, service_of
from tests.cache_agent.prewarm.reconciling import Keeping, Runtime, desired, keeping
from tests.servers.process import until

IMAGE = "reg.test/m:v1"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def kept(factory: NodeFactory, node: Node, **options: Any) -> Any:
    return keeping(node, factory._reader, **options)


def told(at: Keeping, text: str = IMAGE) -> list[ExplainView]:
    return explain(text, at.node.activity, at.node.store, at.reconciler.details())


async def no_pull_runs(at: Keeping) -> None:
    """A model is held a moment before its pull has ended."""
    await until(lambda: not at.node.activity.running(IMAGE), what="the pull's end")


async def failed_times(at: Keeping, times: int) -> ExplainView:
    """Wait for so many failures in a row; what is told then."""

    def found() -> ExplainView | None:
        views = [each for each in told(at) if each.state == "failed"]
        return views[0] if views and views[0].failures == times else None

    return await until(found, what=f"{times} failures")


def test_a_model_that_can_t_be_had_is_told_with_its_times(open_node: NodeFactory) -> None:
    node = open_node({"reg.test/m": Away()})
    began = open_node.now

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("b"), desired("a")])
            await at.reaches("a", "Failed")
            for text, names in ((IMAGE, ["a", "b"]), ("a", ["a"])):
                (view,) = told(at, text)
                assert (view.state, view.image, view.reason) == ("failed", IMAGE, "Unreachable")
                assert "no route to host" in view.text
                assert (view.since, view.failures, view.retry_at) == (began, 1, began + 2.5)
                assert view.desired_by == names
            open_node.now += 60
            at.reconciler.wake()
            again = await failed_times(at, 2)
            assert (again.since, again.retry_at) == (began, began + 65), "the first of the row"
            open_node.images["reg.test/m"] = simple_image(weights=[3000])[0]
            open_node.now += 60
            at.reconciler.wake()
            await at.reaches("a", "Ready")
            await no_pull_runs(at)
            (view,) = told(at)
            assert (view.state, view.desired_by, view.failures) == ("ready", ["a", "b"], 0)
            (view,) = told(at, "a")
            assert (view.subject, view.state) == (f"image {IMAGE}", "ready")

    run(test())


def test_the_hint_is_among_the_words(open_node: NodeFactory) -> None:
    class Refused(Away):
        def resolve(self, name: str) -> Any:
            raise Unreachable("can't reach it", hint="Check the network.")

    node = open_node({"reg.test/m": Refused()})

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a")])
            assert (await failed_times(at, 1)).text == "can't reach it. Check the network."

    run(test())


def test_failures_before_somebody_else_brought_it_are_over(open_node: NodeFactory) -> None:
    """A pod's pull had other credentials, say. Lost afterwards, it fails since then, not since ever."""
    image = simple_image(weights=[3000])[0]
    node = open_node({"reg.test/m": Away()})

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a")])
            await failed_times(at, 1)
            open_node.images["reg.test/m"] = image
            result = await asyncio.to_thread(pull, node)
            open_node.now += 1000
            at.reconciler.stale()
            await at.reaches("a", "Ready")
            open_node.images["reg.test/m"] = Away()
            open_node.now += 1000
            node.store.models.remove(result.model.key)
            (lost,) = told(at)
            assert lost.state == "waiting", "the report still has it"
            at.reconciler.stale()
            view = await failed_times(at, 1)
            assert view.since == open_node.now

    run(test())


def test_no_backoff_outlives_the_model_that_somebody_else_brought(open_node: NodeFactory) -> None:
    image = simple_image(weights=[3000])[0]
    node = open_node({"reg.test/m": Away()})

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a")])
            await failed_times(at, 1)
            open_node.images["reg.test/m"] = image
            key = (await asyncio.to_thread(pull, node)).model.key
            # The registry is never asked again in the test's time: what the store has is seen all the same.
            at.reconciler.stale()
            await at.reaches("a", "Ready")
            (held,) = told(at)
            assert (held.state, held.failures) == ("ready", 0)
            node.store.models.remove(key)
            at.reconciler.stale()
            await until(
                lambda: node.store.models.get(key) is not None, what="it is fetched at once"
            )

    run(test())


def test_a_model_for_which_there_is_no_space_says_what_it_lacks(open_node: NodeFactory) -> None:
    began = open_node.now
    limits = SpaceLimits(Amount.parse("200000"), Amount.parse("0"))
    node = open_node({"reg.test/m": simple_image(weights=[150_000])[0]}, limits=limits)

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a")])
            await at.reaches("a", "Waiting", "NoSpace")
            (view,) = told(at)
            assert (view.state, view.reason, view.retry_at) == ("waiting", "NoSpace", None)
            assert "could be freed" in view.text
            assert view.since == pytest.approx(began)

    run(test())


def test_a_model_that_is_fetched_is_told_once_with_who_desires_it(open_node: NodeFactory) -> None:
    image, record, _ = simple_image(weights=[2 * CHUNK_SIZE])
    large = max(record.files, key=lambda file: file.size)
    half = BreaksAfter(image, large.layer, CHUNK_SIZE, hang=True)
    node = open_node({"reg.test/m": half}, engine=PATIENT)

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a")])
            await until(half.hanging.is_set, what="second chunk on its way")
            for text in (IMAGE, "a"):
                (view,) = told(at, text)
                assert (view.state, view.image, view.desired_by) == ("waiting", IMAGE, ["a"])
                assert view.total > view.done > 0
                assert list(view.sources) == ["registry reg.test/m"]

    run(test())


def test_a_fetch_is_told_with_the_rate_of_its_last_seconds(open_node: NodeFactory) -> None:
    """Here, in `status` and to the kubelet: all have it from the pull."""
    image, record, _ = simple_image(weights=[2 * CHUNK_SIZE])
    large = max(record.files, key=lambda file: file.size)
    half = BreaksAfter(image, large.layer, CHUNK_SIZE, hang=True)
    began = 100.0
    now = [began]
    node = open_node({"reg.test/m": half}, engine=PATIENT, monotonic=lambda: now[0])

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a")])
            await until(half.hanging.is_set, what="second chunk on its way")
            for seconds in (2.0, 4.0, 11.0, 3600.0):
                now[0] = began + seconds
                (view,), (lined,) = told(at), service_of(node).activity()
                told_kubelet = describe(node.activity.running()[0].pull.snapshot())
                wanted = at.wanted("a")
                if seconds < SILENCE:
                    rate = sum(view.sources.values()) / seconds
                    assert view.bytes_per_second == pytest.approx(rate, rel=0.06)
                    assert view.seconds_left == pytest.approx(
                        (view.total - view.done) / rate, rel=0.06
                    )
                    assert view.text == "being fetched"
                    assert "/s, " in told_kubelet
                    assert wanted.message == ""
                else:
                    assert (view.bytes_per_second, view.seconds_left) == (0, None)
                    assert view.text == f"being fetched, no bytes for {seconds:.0f} s"
                    assert told_kubelet.endswith(f", no bytes for {seconds:.0f} s")
                    assert wanted.message == "no bytes are coming from its sources"
                assert (lined.bytes_per_second, lined.text) == (view.bytes_per_second, view.text)
                assert wanted.bytes_per_second == int(view.bytes_per_second)

    run(test())


def test_a_refused_document_is_told_by_its_name_and_its_image(open_node: NodeFactory) -> None:
    node = open_node({"reg.test/m": simple_image(weights=[3000])[0]})
    refused = RefusedDocument("a.yaml", "spec.replicas: expected a number", "b", IMAGE)

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a")], [refused])
            await at.reaches("a", "Ready")
            await no_pull_runs(at)
            assert [each.state for each in told(at, "a")] == ["ready"]
            (view,) = told(at, "b")
            assert (view.subject, view.state) == ("document b in a.yaml", "failed")
            assert (view.reason, view.text) == ("InvalidDocument", refused.why)
            assert [each.state for each in told(at)] == ["ready", "failed"]
            at.reconciler.want([desired("a")])
            with pytest.raises(NotFound):
                told(at, "b")

    run(test())


def test_a_variant_that_is_missing_is_told_beside_the_one_that_is_cached(
    open_node: NodeFactory,
) -> None:
    node = open_node({"reg.test/m": simple_image(weights=[3000])[0]})
    pull(node)

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([DesiredModel("a", FetchTarget(IMAGE, "int4"))])
            await failed_times(at, 1)
            here, missing = told(at)
            assert (here.state, here.desired_by) == ("ready", [])
            assert (missing.subject, missing.state) == (f"image {IMAGE} (int4)", "failed")
            assert missing.reason == "UnknownVariant"

    run(test())


def test_a_runtime_image_that_fails_is_told_beside_its_model(open_node: NodeFactory) -> None:
    node = open_node({"reg.test/m": simple_image(weights=[3000])[0]})
    runtime = Runtime(refusals=[Unreachable("no route to it")])

    async def test() -> None:
        async with kept(open_node, node, runtime=runtime) as at:
            at.reconciler.want([desired("a", runtime_image="server:v1")])
            failed = await failed_times(at, 1)
            assert failed.text == "server:v1: no route to it"
            assert failed.retry_at == open_node.now + 2.5
            await no_pull_runs(at)
            assert [each.state for each in told(at)] == ["ready", "failed"]

    run(test())


def test_what_is_held_and_not_where_it_should_be_says_so(open_node: NodeFactory) -> None:
    node = open_node({"reg.test/m": simple_image(weights=[3000])[0]})
    node.warmer.set_budget(1)

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a", tier="memory")])
            await at.reaches("a", "Ready", "NoMemory")
            await no_pull_runs(at)
            (view,) = told(at)
            assert view.state == "ready"
            assert "there isn't enough memory" in view.text

    run(test())


def test_without_an_agent_it_says_that_nobody_fetches_it(open_node: NodeFactory) -> None:
    node = open_node({"reg.test/m": simple_image(weights=[3000])[0]})
    folder = node.store.first.paths.prewarm
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text(
        "{apiVersion: weightyard.dev/v1alpha1, kind: Workspace, metadata: {name: chat},"
        f" spec: {{model: {{image: '{IMAGE}'}}}}}}"
    )
    (view,) = service_of(node).explain(IMAGE)
    assert (view.state, view.desired_by, view.since) == ("waiting", ["workspace.chat"], 0)
    assert "no agent runs here" in view.text
    (folder / "b.yaml").write_text("{kind: CachedModel, metadata: {name: typo}, spec: {imgae: x}}")
    (view,) = service_of(node).explain("typo")
    assert (view.state, view.subject) == ("failed", "document typo in b.yaml")
    assert "did you mean 'image'?" in view.text, "and not that the image is missing"
    with pytest.raises(NotFound, match="not desired"):
        service_of(node).explain("reg.test/other:v1")


def test_pods_that_wait_for_an_image_are_found_by_it(open_node: NodeFactory) -> None:
    """A Workspace's nodes are pre-warmed by pods: theirs are the errors of a model that the node was to hold."""
    node = open_node()
    node.activity.asked("volume", "uid", "team/chat-prewarm", IMAGE)
    node.activity.answered("volume", "the pull secret doesn't open it")
    (view,) = service_of(node).explain(IMAGE)
    assert (view.subject, view.state) == ("pod team/chat-prewarm", "failed")
    assert view.text == "the pull secret doesn't open it"


def test_each_cached_variant_of_an_image_is_told(open_node: NodeFactory) -> None:
    made = [
        make_record([{"w.safetensors": noise(3000, seed)}], variant=variant)
        for seed, variant in enumerate(("bf16", "int8"))
    ]
    blobs = made[0][1] | made[1][1]
    node = open_node({"reg.test/m": MemoryImage.of([record for record, _ in made], blobs)})
    for variant in ("bf16", "int8"):
        pull(node, IMAGE, variant)
    subjects = {each.subject for each in service_of(node).explain(IMAGE)}
    assert subjects == {f"image {IMAGE} (bf16)", f"image {IMAGE} (int8)"}


def test_a_workspace_is_found_by_its_own_name_too(open_node: NodeFactory) -> None:
    """Its desired model's begins with `workspace.`, as `weightyard status` shows it."""
    node = open_node({"reg.test/m": simple_image(weights=[3000])[0]})
    folder = node.store.first.paths.prewarm
    folder.mkdir(parents=True)
    workspace = (
        "{apiVersion: weightyard.dev/v1alpha1, kind: Workspace, metadata: {name: %s},"
        " spec: {model: {image: '%s'}}}"
    )
    (folder / "a.yaml").write_text(workspace % ("chat", IMAGE))
    (folder / "b.yaml").write_text(workspace % ("odd", "::"))
    for name in ("chat", "workspace.chat"):
        (view,) = service_of(node).explain(name)
        assert view.desired_by == ["workspace.chat"]
    for name in ("odd", "workspace.odd"):
        (view,) = service_of(node).explain(name)
        assert (view.subject, view.reason) == (
            "document workspace.odd in b.yaml",
            "InvalidDocument",
        )


def test_a_pull_whose_model_is_cached_is_not_told_beside_it(open_node: NodeFactory) -> None:
    """A model is cached a moment before its pull has ended; one that was there before is another one."""
    node = open_node({"reg.test/m": simple_image(weights=[3000])[0]})

    class Whole:
        """A pull in that moment."""

        state = PullState.PUBLISHING

        def snapshot(self) -> PullSnapshot:
            return PullSnapshot(self.state, total=3000, done=3000)

    pull(node)
    for variant in (None, "bf16"):
        node.activity._pulls = [Running(IMAGE, variant, cast("Pull", Whole()), open_node.now)]
        assert [each.state for each in service_of(node).explain(IMAGE)] == ["ready"]
    for other in (
        Running(IMAGE, "int8", cast("Pull", Whole()), open_node.now),
        Running(IMAGE, None, cast("Pull", Whole()), open_node.now + 1),
    ):
        node.activity._pulls = [other]
        assert [each.state for each in service_of(node).explain(IMAGE)] == ["ready", "waiting"]
    node.activity._pulls = []


def test_models_of_one_name_are_told_with_their_own_images(open_node: NodeFactory) -> None:
    """A CachedModel and a Workspace may have one name."""
    made = [simple_image(weights=[3000], seed=seed)[0] for seed in (1, 2)]
    node = open_node({"reg.test/m": made[0], "reg.test/o": made[1]})
    folder = node.store.first.paths.prewarm
    folder.mkdir(parents=True)
    kinds = {
        "CachedModel": "{image: 'reg.test/o:v1'}",
        "Workspace": "{model: {image: 'reg.test/m:v1'}}",
    }
    for kind, spec in kinds.items():
        (folder / f"{kind}.yaml").write_text(
            f"{{apiVersion: weightyard.dev/v1alpha1, kind: {kind}, metadata: {{name: chat}}, spec: {spec}}}"
        )
    pull(node, "reg.test/m:v1")
    pull(node, "reg.test/o:v1")
    told_of = {each.subject: each.image for each in service_of(node).explain("chat")}
    assert told_of == {f"image {name}": name for name in ("reg.test/o:v1", "reg.test/m:v1")}


def test_a_source_that_never_sends_a_byte_stands_still(open_node: NodeFactory) -> None:
    image, record, _ = simple_image(weights=[2 * CHUNK_SIZE])
    large = max(record.files, key=lambda file: file.size)
    silent = BreaksAfter(image, large.layer, 0, hang=True)
    now = [100.0]
    node = open_node({"reg.test/m": silent}, engine=PATIENT, monotonic=lambda: now[0])

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a")])
            await until(silent.hanging.is_set, what="request for bytes")
            now[0] += 30
            (view,) = told(at)
            assert view.text == "being fetched, no bytes for 30 s"
            assert at.wanted("a").message == "no bytes are coming from its sources"

    run(test())
