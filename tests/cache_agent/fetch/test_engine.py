"""Sources that stall, lie, cut short, refuse or slow down; many pulls at once; what one node fetches only once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.fetch.engine import EngineOptions
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.range_planner import (
    SourceView,
    choose_source,
    is_too_slow,
)
from cache_agent.fetch.values import PullRequest
from cache_agent.node.metrics import Metrics
from cache_agent.node.node import Node
from cache_agent.sources.image import ImageSource
from cache_agent.sources.source import Source
from cache_agent.sources.throttle import Throttle
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.values import Holder
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    InUse,
    NoSpace,
    NotFound,
    Unreachable,
    WeightyardError,
)
from modelimage.record import CHUNK_SIZE, Record
from modelimage.reference import parse_image
from modelimage.repository import ImageReader
from modelimage.resolve import ResolvedModel
from tests.cache_agent import faults
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, make_record, noise, simple_image
from tests.cache_agent.nodes import NodeFactory, pull
from tests.servers.process import wait_until

Fault = Callable[[ImageReader], ImageReader]
# Who is taken for stalled because the machine was busy goes on here: closing a stream in memory ends no read of it.
QUICK = EngineOptions(streams=3, stall_seconds=0.2)


def both(first: Fault) -> Callable[[ResolvedModel, ImageReader, str], Sequence[Source]]:
    """A faulty source before a good one."""

    def sources(resolved: ResolvedModel, reader: ImageReader, repository: str) -> Sequence[Source]:
        return [
            ImageSource(first(reader), resolved.record, resolved.layers, "faulty"),
            ImageSource(reader, resolved.record, resolved.layers, "good"),
        ]

    return sources


@pytest.mark.parametrize(
    "fault",
    [faults.Lying, faults.Truncating, faults.Stalling, faults.Empty, faults.Refusing,
     lambda inner: faults.RateLimiting(inner, 1000, retry_after=30)],
    ids=["lying", "truncating", "stalling", "empty", "refusing", "rate limiting"],
)  # fmt: skip
def test_a_faulty_source_costs_time_but_no_byte(open_node: NodeFactory, fault: Fault) -> None:
    image, _, contents = simple_image(weights=[60_000, 5000])
    node = open_node({"reg.test/m": image}, engine=QUICK, sources=both(fault))
    handle = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    result = handle.result()
    assert result is not None
    assert files_of(result.path) == contents
    assert "good" in {name for _, name, _ in handle.snapshot().by_source}


@pytest.mark.parametrize(
    ("fault", "error"),
    [(faults.Lying, DigestMismatch), (faults.Truncating, Unreachable), (faults.Stalling, Unreachable),
     (faults.Empty, NotFound), (faults.Refusing, AccessDenied)],
    ids=["lying", "truncating", "stalling", "empty", "refusing"],
)  # fmt: skip
def test_when_the_only_source_is_faulty_the_pull_says_how(
    open_node: NodeFactory, fault: Fault, error: type[WeightyardError]
) -> None:
    image, _, contents = simple_image(weights=[60_000])
    node = open_node({"reg.test/m": fault(image)}, engine=QUICK)
    with pytest.raises(error):
        pull(node)
    open_node.images["reg.test/m"] = image
    assert files_of(pull(node).path) == contents


def test_a_source_that_asks_to_slow_down_is_waited_for(open_node: NodeFactory) -> None:
    image, _, contents = simple_image(weights=[60_000])
    node = open_node({"reg.test/m": faults.RateLimiting(image, 6)})
    assert files_of(pull(node).path) == contents


def test_a_slow_source_is_left_for_one_that_was_not_tried(open_node: NodeFactory) -> None:
    image, _, contents = simple_image(weights=[600_000, 500_000])
    slow = EngineOptions(streams=2, stall_seconds=1.0, min_rate=1e6)
    node = open_node(
        {"reg.test/m": image}, engine=slow, sources=both(lambda i: faults.Slow(i, 0.2))
    )
    handle = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    result = handle.result()
    assert result is not None
    assert files_of(result.path) == contents
    came = {name: size for _, name, size in handle.snapshot().by_source}
    assert came["good"] > 1_000_000


def test_the_only_source_is_never_too_slow(open_node: NodeFactory) -> None:
    """By a clock that only its reads move on: it is slow after a third of them, and never seems to stand still."""
    image, record, contents = simple_image(weights=[300_000])
    clock = [0.0]
    slow = EngineOptions(streams=1, stall_seconds=0.2, min_rate=1e9)
    node = open_node(
        {"reg.test/m": faults.Slow(image, 0.002, clock)}, engine=slow, monotonic=lambda: clock[0]
    )
    assert files_of(pull(node).path) == contents
    assert image.fetched() <= sum(layer.size for layer in record.layers)


VIEWS = st.lists(
    st.builds(
        SourceView,
        backoff_until=st.sampled_from([0.0, 5.0]),
        excluded=st.booleans(),
        failures=st.integers(0, 2),
        rate=st.none() | st.floats(1, 1e9),
    ),
    min_size=1,
    max_size=4,
)


@given(views=VIEWS, min_rate=st.sampled_from([0.0, 1e6]))
def test_a_source_is_left_for_a_better_one_only_and_never_back_and_forth(
    views: list[SourceView], min_rate: float
) -> None:
    chosen = choose_source(views, 1.0, min_rate)
    if not isinstance(chosen, int):
        return
    assert not views[chosen].excluded
    usable = [v for v in views if not v.excluded and v.backoff_until <= 1.0]
    if len(usable) == 1:
        assert not is_too_slow(views, chosen, 1.0, min_rate)
    fewest = min(view.failures for view in usable)
    equals = [view for view in usable if view.failures == fewest]
    if len(equals) == len(usable) and is_too_slow(views, chosen, 1.0, min_rate):
        # Then all are: it would not be left for one that is too slow itself.
        assert all(is_too_slow(views, i, 1.0, min_rate) for i, v in enumerate(views) if v in usable)


def test_a_file_that_another_image_brought_is_fetched_from_ones_own_layer(
    open_node: NodeFactory,
) -> None:
    """Both bundles hold the same tokenizer, in other layers; having it from one doesn't show that the other has it."""
    one, _, _ = simple_image(weights=[5000], seed=1)
    two, _, contents = simple_image(weights=[7000], seed=2)
    gate = faults.Gate(one)
    node = open_node({"reg.test/one": gate, "reg.test/two": two})
    handles = [node.pull(PullRequest(parse_image("reg.test/one:v1")))]
    gate.reached.wait()
    handles.append(node.pull(PullRequest(parse_image("reg.test/two:v1"))))
    wait_until(
        lambda: any(job.sources[0].name == "reg.test/two" for job in node.engine._jobs),
        what="job of its own layer",
    )
    gate.opened.set()
    results = [handle.result() for handle in handles]
    assert results[1] is not None
    assert files_of(results[1].path) == contents


def test_who_waits_goes_before_what_is_only_warmed_ahead(open_node: NodeFactory) -> None:
    early, urgent = (
        MemoryImage.of(
            *_each_alone({f"w{n}.safetensors": noise(5000 + seed, seed + n) for n in range(6)})
        )
        for seed in (100, 200)
    )
    gate = faults.Gate(early)
    node = open_node(
        {"reg.test/early": gate, "reg.test/urgent": urgent}, engine=EngineOptions(streams=1)
    )
    warming = node.pull(PullRequest(parse_image("reg.test/early:v1"), priority=10))
    gate.reached.wait()
    urgent.requests = early.requests  # one list, for the order of both
    waiting = node.pull(PullRequest(parse_image("reg.test/urgent:v1"), priority=100))
    wait_until(lambda: any(job.priority == 100 for job in node.engine._jobs), what="its job")
    gate.opened.set()
    assert waiting.result()
    assert warming.result()
    asked = [digest in urgent.blobs for digest, _ in early.requests]
    assert asked.index(True) <= 1, "before it came only what was under way"
    assert asked == sorted(asked[:1]) + [True] * 6 + [False] * 5


def _each_alone(files: dict[str, bytes]) -> tuple[list[Record], dict[Digest, bytes]]:
    record, blobs = make_record([{path: data} for path, data in files.items()])
    return [record], blobs


def test_many_pulls_of_one_model_fetch_each_byte_once(open_node: NodeFactory) -> None:
    image, record, contents = simple_image(weights=[CHUNK_SIZE + 9, 40_000])
    gate = faults.Gate(image)
    node = open_node({"reg.test/m": gate})
    handles = [node.pull(PullRequest(parse_image("reg.test/m:v1"))) for _ in range(8)]
    gate.reached.wait()
    gate.opened.set()
    results = [handle.result() for handle in handles]
    assert len({result.path for result in results if result}) == 1
    assert files_of(results[0].path) == contents if results[0] else False
    layers = {layer.digest: layer.size for layer in record.layers}
    assert image.fetched() <= sum(layers.values())


def test_models_that_share_a_file_wait_for_the_one_that_fetches_it(open_node: NodeFactory) -> None:
    shared = {"shared.safetensors": noise(50_000, 5)}
    one, blobs = make_record([shared, {"a.safetensors": noise(3000, 6)}], source="one")
    two, more = make_record([shared, {"b.safetensors": noise(3000, 7)}], source="two")
    image = MemoryImage.of([one], {**blobs, **more}, "one")
    second = MemoryImage.of([two], image.blobs, "two")
    image.manifests.update(second.manifests)
    image.names.update(second.names)
    image.blobs.update(second.blobs)
    gate = faults.Gate(image)
    node = open_node({"reg.test/m": gate})
    handles = [node.pull(PullRequest(parse_image(f"reg.test/m:{tag}"))) for tag in ("one", "two")]
    gate.reached.wait()
    gate.opened.set()
    assert all(handle.result() for handle in handles)
    layer = next(f.layer for f in one.files if f.path == "shared.safetensors")
    asked = [r for digest, r in image.requests if digest == layer]
    assert sum(map(len, asked)) == 50_000


def test_when_the_pull_that_fetches_fails_the_one_that_waits_takes_over(
    open_node: NodeFactory,
) -> None:
    image, _, contents = simple_image(weights=[60_000])
    gate = faults.Gate(image)
    node = open_node({"reg.test/m": gate})
    first = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    gate.reached.wait()
    second = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    first.cancel()
    gate.opened.set()
    result = second.result()
    assert result is not None
    assert files_of(result.path) == contents


def test_evictions_never_take_what_sixteen_threads_lease(open_node: NodeFactory) -> None:
    """There is room for two of three models, so each pull of the third has one evicted, unless both are held.

    In every second round nobody asks for one of them, so that there is something to evict.
    """
    images = {}
    keys: list[Digest] = []
    for number in range(3):
        image, record, _ = simple_image(weights=[2000], seed=number)
        images[f"reg.test/m{number}"] = image
        keys.append(record.key)
    size = sum(file.size for file in record.files)
    metrics, limits = Metrics(), SpaceLimits(Amount(bytes=2 * size), Amount())
    node = open_node(images, limits=limits, events=metrics)
    stop = threading.Event()
    broken: list[str] = []
    left_alone: list[Digest | None] = [None]
    leased = threading.Semaphore(0)

    def user(number: int) -> None:
        key, holder = keys[number % 3], Holder.parse(f"pod:{number}")
        while not stop.is_set():
            if key == left_alone[0]:
                stop.wait(0.001)
                continue
            try:
                lease = node.store.leases.take(key, holder)
            except NotFound:
                continue
            leased.release()
            path = node.store.first.paths.model(key) / "model-00000.safetensors"
            if not path.exists():
                broken.append(f"{key} vanished under a lease")
            node.store.leases.release(lease.id)

    threads = [threading.Thread(target=user, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(60):
            left_alone[0] = None if round_ % 2 else keys[(round_ + 1) % 3]
            wait_until(
                lambda: left_alone[0] not in {lease.model for lease in node.store.leases.all()},
                what="end of its leases",
            )
            with suppress(NoSpace):  # both are held
                pull(node, f"reg.test/m{round_ % 3}:v1")
            with suppress(InUse, NotFound):
                if round_ > 3:
                    node.store.models.remove(keys[round_ % 3])
        leased.acquire()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert broken == []
    assert 'weightyard_evictions_total{reason="pull"}' in metrics.exposition()[0].decode()


def test_a_throttle_keeps_its_rate_over_any_reads() -> None:
    now = [100.0]
    throttle = Throttle(1000.0, lambda: now[0])
    total = 0
    for size in (100, 700, 1, 2500, 50, 1300):
        total += size
        now[0] += throttle.take(size)
    assert total / (now[0] - 100.0) <= 1000.0 * 1.01
    assert Throttle(0.0, lambda: 0.0).take(10**9) == 0.0


def test_a_node_that_closes_ends_its_pulls(open_node: NodeFactory) -> None:
    image, _, _ = simple_image(weights=[60_000])
    stalling = faults.Stalling(image)
    node: Node = open_node({"reg.test/m": stalling}, engine=EngineOptions(streams=2))
    handle: Pull = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    node.close()
    with pytest.raises(WeightyardError):
        handle.result()
