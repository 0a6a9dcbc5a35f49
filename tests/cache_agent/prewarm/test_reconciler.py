"""The keeper on a real store: what is wanted comes, gives way and comes back; leases and pins made by hand stay."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cache_agent.api.cached_model import Window
from cache_agent.api.shared_names import node_label
from cache_agent.errors import DiskFailed
from cache_agent.fetch.values import PullRequest
from cache_agent.node.node import Node
from cache_agent.prewarm.inventory import take_inventory
from cache_agent.prewarm.reconciler_options import ReconcilerOptions
from cache_agent.prewarm.values import Inventory
from cache_agent.store.budget import StoreSpace
from cache_agent.store.partials import identity
from cache_agent.store.reservations import Reservation
from cache_agent.store.roots import Roots
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.values import Holder, HolderKind, StoredModel
from modelimage.errors import RemoteRefused, WeightyardError
from modelimage.record import CHUNK_SIZE
from modelimage.reference import parse_image
from tests.cache_agent.faults import Away, BreaksAfter
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, simple_image
from tests.cache_agent.nodes import PATIENT, NodeFactory, pull
from tests.cache_agent.prewarm.reconciling import Keeping, Runtime, desired, keeping
from tests.servers.process import until, wait_until

# Two of the images fit together, three don't.
TIGHT = SpaceLimits(Amount.parse("1100000"), Amount.parse("0"))
NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC


def images(count: int = 3) -> dict[str, MemoryImage]:
    return {f"reg.test/m{n}": simple_image(weights=[150_000], seed=n)[0] for n in range(count)}


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def kept(factory: NodeFactory, node: Node, **options: Any) -> Any:
    return keeping(node, factory._reader, **options)


def pinned(node: Node) -> int:
    return sum(model.pinned for model in node.store.models.all())


def lease(node: Node) -> None:
    (model,) = node.store.models.all()
    node.store.leases.take(model.key, Holder(HolderKind.MANUAL, "test"))


def test_what_is_wanted_is_fetched_pinned_and_reported(open_node: NodeFactory) -> None:
    node = open_node(images(1))

    async def test() -> None:
        async with kept(open_node, node) as at:
            assert at.status().conditions[1].reason == "NotSynced"
            at.reconciler.want([desired("a", "reg.test/m0:v1", pin=True, tier="memory")])
            await until(lambda: at.status().models and at.wanted("a").pinned, what="a pin")
            done = await at.reaches("a", "Ready")
            (model,) = node.store.models.all()
            assert (done.model_key, done.bytes_done) == (str(model.key), model.size)
            assert {c.type: c.status for c in at.status().conditions} == dict.fromkeys(
                ("Ready", "Synced", "PinnedReady", "SpaceSufficient"), "True"
            )
            assert ("desired model held", "a") in [(event, f.get("name")) for event, f in at.log]

    run(test())


def test_a_pin_goes_with_its_wish_and_one_made_by_hand_stays(open_node: NodeFactory) -> None:
    node = open_node(images(2))
    pull(node, "reg.test/m1:v1")
    (by_hand,) = node.store.models.all()
    node.store.models.pin(by_hand.key, pinned=True)

    async def test() -> None:
        async with kept(open_node, node) as at:
            desired_models = [desired(n, f"reg.test/{n}:v1", pin=True) for n in ("m0", "m1")]
            at.reconciler.want(desired_models)
            await until(lambda: pinned(node) == 2, what="two pins")
        # The wishes go while no keeper runs.
        async with kept(open_node, node) as at:
            at.reconciler.want([])
            await until(lambda: pinned(node) == 1, what="the pin made by hand alone")
            assert node.store.models.get(by_hand.key).pinned

    run(test())


def test_pins_come_back_when_the_ledger_was_lost(open_node: NodeFactory) -> None:
    node = open_node(images(1))
    pull(node, "reg.test/m0:v1")
    node.close()
    for path in open_node.root.glob("ledger.db*"):
        path.unlink()
    again = open_node()

    async def test() -> None:
        async with kept(open_node, again) as at:
            at.reconciler.want([desired("a", "reg.test/m0:v1", pin=True)])
            await until(lambda: pinned(again) == 1, what="a pin")
            await at.reaches("a", "Ready")

    assert not again.store.models.all()[0].pinned
    run(test())


def test_the_less_wanted_makes_room_once_its_label_is_gone_and_comes_back(
    open_node: NodeFactory,
) -> None:
    node = open_node(images(), limits=TIGHT)
    gone, asked = asyncio.Event(), []

    async def label_gone(label: str) -> None:
        asked.append(label)
        await gone.wait()

    async def test() -> None:
        async with kept(open_node, node, label_gone=label_gone) as at:
            low = [desired(n, f"reg.test/{n}:v1", priority=10) for n in ("m0", "m1")]
            at.reconciler.want(low)
            await at.reaches("m0", "Ready")
            await at.reaches("m1", "Ready")
            at.reconciler.want([*low, desired("m2", "reg.test/m2:v1", priority=90)])
            await at.reaches("m2", "Waiting", "Evicting")
            (leaving,) = [m for m in at.status().models if m.state == "Releasing"]
            await until(lambda: asked, what="question for the label")
            assert asked[0] == node_label(node.store.models.find(leaving.key).key)
            gone.set()
            await at.reaches("m2", "Ready")
            loser = next(w.name for w in low if w.target.image == leaving.image)
            await at.reaches(loser, "Waiting", "NoSpace")
            at.reconciler.want(low)
            node.store.set_limits(SpaceLimits(Amount.parse("100%"), Amount.parse("0")))
            await at.reaches(loser, "Ready")

    run(test())


# No inventory without a reason.
UNLOOKED = ReconcilerOptions(look_seconds=24 * 3600.0)


def while_taken(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Let something happen after each inventory was made, and before it is handed over."""

    def taken(store: Roots, now: float) -> Inventory:
        inventory = take_inventory(store, now)
        happens()
        return inventory

    monkeypatch.setattr("cache_agent.prewarm.reconciler.take_inventory", taken)


async def wanted_once(at: Keeping, factory: NodeFactory) -> StoredModel:
    """The one model, fetched, a minute ago."""
    at.reconciler.want([desired("a", "reg.test/m0:v1")])
    await at.reaches("a", "Ready")
    (model,) = at.node.store.models.all()
    factory.now += 60
    return model


async def fetched_again(at: Keeping, factory: NodeFactory) -> None:
    models = at.node.store.models
    await until(lambda: [m.added for m in models.all()] == [factory.now], what="a refetch")


def test_what_changes_while_an_inventory_is_taken_is_in_the_next_one(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = open_node(images(1))
    removals: list[Callable[[], object]] = []

    def remove() -> None:
        while removals:
            removals.pop()()

    while_taken(monkeypatch, remove)

    async def test() -> None:
        async with kept(open_node, node, options=UNLOOKED) as at:
            first = await wanted_once(at, open_node)
            loop = asyncio.get_running_loop()

            async def stale() -> None:
                at.reconciler.stale()

            def removed_by_another() -> None:
                node.store.models.remove(first.key)
                asyncio.run_coroutine_threadsafe(stale(), loop).result()

            removals.append(removed_by_another)
            at.reconciler.stale()
            await fetched_again(at, open_node)

    run(test())


def test_what_is_reserved_while_an_inventory_is_taken_is_not_given_away_twice(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inventory still counts it as free, and the fetch has settled when the plan is made."""
    node = open_node(images(2), limits=SpaceLimits(Amount.parse("600000"), Amount.parse("0")))
    reserve = StoreSpace.reserve
    reserving, counted = threading.Event(), threading.Event()

    def held_up(space: StoreSpace, need: int, **options: Any) -> Reservation:
        reserving.set()
        wait_until(counted.is_set, what="inventory")
        return reserve(space, need, **options)

    async def test() -> None:
        loop = asyncio.get_running_loop()

        async def settled() -> None:
            await until(lambda: not at.reconciler._settling, what="settled fetch")

        def settle() -> None:
            if reserving.is_set() and not counted.is_set():
                counted.set()
                asyncio.run_coroutine_threadsafe(settled(), loop).result()

        monkeypatch.setattr(StoreSpace, "reserve", held_up)
        while_taken(monkeypatch, settle)
        async with kept(open_node, node, options=UNLOOKED) as at:
            first = desired("m0", "reg.test/m0:v1", priority=90)
            at.reconciler.want([first])
            await until(reserving.is_set, what="reservation")
            at.reconciler.want([first, desired("m1", "reg.test/m1:v1")])
            await at.reaches("m1", "Waiting", "Queued")
            at.reconciler.stale()
            await at.reaches("m0", "Ready")
            await at.reaches("m1", "Waiting", "NoSpace")
        told = [(f["name"], f["reason"]) for event, f in at.log if event == "desired model failed"]
        assert told == [("m1", "NoSpace")]

    run(test())


def test_an_inventory_that_fails_is_taken_again_before_the_next_plan(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = open_node(images(1))
    failures: list[WeightyardError] = []

    def fail() -> None:
        if failures:
            raise failures.pop()

    while_taken(monkeypatch, fail)

    async def test() -> None:
        async with kept(open_node, node, options=UNLOOKED) as at:
            first = await wanted_once(at, open_node)
            node.store.models.remove(first.key)
            failures.append(DiskFailed("it fails once"))
            at.reconciler.stale()
            await until(lambda: not failures, what="a failure")
            at.reconciler.wake()
            await fetched_again(at, open_node)

    run(test())


def test_a_label_that_stays_is_waited_for_only_so_long(open_node: NodeFactory) -> None:
    node = open_node(images(), limits=TIGHT)

    async def never(label: str) -> None:
        await asyncio.Event().wait()

    async def test() -> None:
        options = ReconcilerOptions(look_seconds=0.2, label_seconds=0.05)
        async with kept(open_node, node, options=options, label_gone=never) as at:
            low = [desired(n, f"reg.test/{n}:v1", priority=10) for n in ("m0", "m1")]
            at.reconciler.want([*low, desired("m2", "reg.test/m2:v1", priority=90)])
            await at.reaches("m2", "Ready")

    run(test())


def test_what_is_leased_stays_and_the_wish_says_what_it_lacks(open_node: NodeFactory) -> None:
    limits = SpaceLimits(Amount.parse("600000"), Amount.parse("0"))
    node = open_node(images(2), limits=limits)
    pull(node, "reg.test/m0:v1")
    lease(node)

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a", "reg.test/m1:v1", priority=99)])
            waiting = await at.reaches("a", "Waiting", "NoSpace")
            assert "could be freed" in waiting.message
            assert at.status().conditions[3].status == "False"
            assert len(node.store.models.all()) == 1

    run(test())


def test_the_least_valuable_models_are_reported_as_the_next_victims_and_those_in_use_are_not(
    open_node: NodeFactory,
) -> None:
    node = open_node(images(5))
    pull(node, "reg.test/m0:v1")
    lease(node)
    for number in range(1, 5):
        pull(node, f"reg.test/m{number}:v1")
    (order,) = (store.space.plan(1 << 62).victims for store in node.store.stores)

    async def test() -> None:
        async with kept(open_node, node) as at:
            await until(lambda: len(at.status().models) == 5, what="an inventory")
            victims = at.status().next_victims
            assert [(each.key, each.frees) for each in victims] == [
                (str(each.key), each.freed) for each in order[:3]
            ]
            assert all(each.last_used is not None for each in victims)

    run(test())


def test_a_pod_s_pull_goes_before_what_is_warmed_ahead(open_node: NodeFactory) -> None:
    """It may take the room of what was fetched ahead, which waits then, and doesn't fight for it."""
    limits = SpaceLimits(Amount.parse("600000"), Amount.parse("0"))
    node = open_node(images(2), limits=limits)

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a", "reg.test/m0:v1")])
            await at.reaches("a", "Ready")
            request = PullRequest(parse_image("reg.test/m1:v1"))
            await asyncio.to_thread(lambda: node.pull(request).result())
            lease(node)
            await at.reaches("a", "Waiting", "NoSpace")

    run(test())


def test_a_registry_that_is_away_is_told_and_asked_again(open_node: NodeFactory) -> None:
    (image,) = images(1).values()
    node = open_node({"reg.test/m0": Away()})

    async def test(at: Keeping) -> None:
        at.reconciler.want([desired("a", "reg.test/m0:v1")])
        failed = await at.reaches("a", "Failed")
        assert failed.reason == "Unreachable"
        open_node.images["reg.test/m0"] = image
        open_node.now += 10
        at.reconciler.wake()
        await at.reaches("a", "Ready")

    async def whole() -> None:
        async with kept(open_node, node) as at:
            await test(at)

    run(whole())


def test_a_closed_window_is_waited_for(open_node: NodeFactory) -> None:
    open_node.now = NOON
    node = open_node(images(1))

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want(
                [desired("a", "reg.test/m0:v1", window=Window(start="22:00", end="23:00"))]
            )
            await at.reaches("a", "Waiting", "OutsideWindow")
            assert not node.store.models.all()
            open_node.now += 10 * 3600
            at.reconciler.wake()
            await at.reaches("a", "Ready")

    run(test())


def test_a_fetch_stops_when_its_window_closes_and_goes_on_with_what_it_has(
    open_node: NodeFactory,
) -> None:
    open_node.now = NOON
    image, record, contents = simple_image(weights=[2 * CHUNK_SIZE])
    large = max(record.files, key=lambda file: file.size)
    half = BreaksAfter(image, large.layer, CHUNK_SIZE, hang=True)
    node = open_node({"reg.test/m0": half}, engine=PATIENT)
    wanted = desired("a", "reg.test/m0:v1", window=Window(start="11:00", end="12:30"))

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([wanted])
            await until(half.hanging.is_set, what="second chunk on its way")
            assert at.wanted("a").state == "Fetching"
            open_node.now += 3600
            at.reconciler.wake()
            await at.reaches("a", "Waiting", "OutsideWindow")
            await until(
                lambda: not node.downloads.running(identity(large)), what="end of the fetch"
            )
            open_node.images["reg.test/m0"] = image
            image.requests.clear()
            open_node.now += 22.5 * 3600
            at.reconciler.wake()
            await at.reaches("a", "Ready")

    run(test())
    assert files_of(node.store.models.all()[0].path) == contents
    assert sum(len(r) for digest, r in image.requests if digest == large.layer) == CHUNK_SIZE + 1


def test_nonsense_is_refused_with_its_reason(open_node: NodeFactory) -> None:
    node = open_node(images(1))

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a", "::"), desired("b", "reg.test/none:v1")])
            assert (await at.reaches("a", "Failed")).reason == "InvalidInput"
            assert (await at.reaches("b", "Failed")).reason == "NotFound"

    run(test())


@pytest.mark.parametrize("refused", [False, True])
def test_the_runtime_image_comes_with_the_model(open_node: NodeFactory, *, refused: bool) -> None:
    node = open_node(images(1))
    runtime = Runtime(refusals=[RemoteRefused("no")] if refused else [])

    async def test() -> None:
        async with kept(open_node, node, runtime=runtime) as at:
            at.reconciler.want([desired("a", "reg.test/m0:v1", runtime_image="vllm:v1")])
            if refused:
                assert (await at.reaches("a", "Failed")).runtime_image == "Failed"
                open_node.now += 10
                at.reconciler.wake()
            done = await at.reaches("a", "Ready")
            assert done.runtime_image == "Present"
            assert runtime.images == {"vllm:v1"}

    run(test())


def test_without_a_runtime_a_model_is_ready_and_says_so(open_node: NodeFactory) -> None:
    node = open_node(images(1))

    async def test() -> None:
        async with kept(open_node, node) as at:
            at.reconciler.want([desired("a", "reg.test/m0:v1", runtime_image="vllm:v1")])
            assert (await at.reaches("a", "Ready")).runtime_image == "Unsupported"

    run(test())
