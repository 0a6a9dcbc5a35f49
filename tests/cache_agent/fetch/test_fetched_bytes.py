"""The metric of fetched bytes: it moves while they come, and has each once, whatever becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.errors import Cancelled
from cache_agent.fetch import fetched_bytes
from cache_agent.fetch.fetched_bytes import FetchedBytes
from cache_agent.fetch.job import Job, SourceRetryPolicy
from cache_agent.fetch.values import PullRequest
from cache_agent.node.metrics import Metrics
from cache_agent.node.node import Node
from cache_agent.observability import series
from cache_agent.observability.events import Event, Events, PullEnded
from cache_agent.sources.image import ImageSource
from cache_agent.sources.source import ChunkRange, ResolvedSource, Source, Tier
from modelimage.errors import Unreachable
from modelimage.reference import parse_image
from modelimage.repository import BlobStream, ImageReader
from tests.cache_agent import faults
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import PATIENT, NodeFactory, pull

BySource = dict[tuple[str, str], int]


def scraped(metrics: Metrics) -> BySource:
    """What a scrape finds now, by tier and source."""
    return {
        (sample.labels["tier"], sample.labels["source"]): int(sample.value)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "weightyard_fetched_bytes_total"
    }


def watched(node: Node) -> Metrics:
    metrics = Metrics()
    metrics.watch(node.store, node.engine)
    return metrics


class Ends(Events):
    """The ends of pulls: what the log and traces tell of them."""

    def __init__(self) -> None:
        self.found: list[PullEnded] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, PullEnded):
            self.found.append(event)

    def by_source(self) -> BySource:
        total: BySource = {}
        for end in self.found:
            for tier, name, size in end.by_source:
                total[tier, name] = total.get((tier, name), 0) + size
        return total


def test_bytes_count_while_they_come_and_stay_when_the_pull_is_cancelled(
    open_node: NodeFactory,
) -> None:
    image, record, _ = simple_image(weights=[600_000])
    (layer,) = {f.layer for f in record.files if f.path.startswith("model-")}
    fault = faults.BreaksAfter(image, layer, 200_000, hang=True)
    ends = Ends()
    node = open_node({"reg.test/m": fault}, engine=PATIENT, events=ends)
    metrics = watched(node)
    assert scraped(metrics) == {}
    handle = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    fault.hanging.wait()
    came = scraped(metrics)
    assert ends.found == [], "the pull runs"
    assert came[("registry", "reg.test/m")] >= 200_000
    told = {(tier, name): size for tier, name, size in handle.snapshot().by_source}
    assert came == told, "`explain` and the metric agree"

    handle.cancel()
    with pytest.raises(Cancelled):
        handle.result()
    assert scraped(metrics) == came == ends.by_source()

    open_node.images["reg.test/m"] = image
    before = sum(came.values())
    fetched = pull(node).fetched
    assert fetched > 0
    assert sum(scraped(metrics).values()) == before + fetched
    assert scraped(metrics) == ends.by_source()


def test_bytes_of_a_pull_that_fails_count_once(open_node: NodeFactory) -> None:
    image, record, _ = simple_image(weights=[600_000])
    (layer,) = {f.layer for f in record.files if f.path.startswith("model-")}
    ends = Ends()
    node = open_node({"reg.test/m": faults.BreaksAfter(image, layer, 200_000)}, events=ends)
    metrics = watched(node)
    with pytest.raises(Unreachable):
        pull(node)
    came = scraped(metrics)
    assert sum(came.values()) >= 200_000
    assert came == ends.by_source() == scraped(metrics)


def test_discarded_bytes_count_for_the_source_that_sent_them(open_node: NodeFactory) -> None:
    image, _, contents = simple_image(weights=[60_000])

    def sources(resolved: ResolvedSource, reader: ImageReader, repository: str) -> Sequence[Source]:
        return [
            ImageSource(faults.Lying(reader), resolved.record, resolved.layers, "lying"),
            ImageSource(reader, resolved.record, resolved.layers, "good"),
        ]

    ends = Ends()
    node = open_node({"reg.test/m": image}, sources=sources, events=ends)
    metrics = watched(node)
    pull(node)
    came = scraped(metrics)
    distinct = sum({data: len(data) for data in contents.values()}.values())
    assert came[("registry", "good")] <= distinct
    assert came[("registry", "lying")] > 0
    assert sum(came.values()) > distinct, "what was wrong came, and then came again"
    assert came == ends.by_source()


def test_repairs_count_though_no_pull_ends(open_node: NodeFactory) -> None:
    image, record, _ = simple_image(weights=[60_000])
    ends = Ends()
    node = open_node({"reg.test/m": image}, events=ends)
    metrics = watched(node)
    pull(node)
    before = scraped(metrics)
    weight = max(record.files, key=lambda file: file.size)
    path = node.store.first.paths.file(weight.digest)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"damage")
    path.chmod(0o444)
    assert node.repairer.repair(node.store.first, weight.digest)
    came = scraped(metrics)
    assert sum(came.values()) == sum(before.values()) + weight.size
    assert len(ends.found) == 1


class LookedAt(threading.Condition):
    """The engine's lock, with a look at the bytes whenever a thread has released it: nobody can look in between."""

    def __init__(self, look: Callable[[], fetched_bytes.BySource]) -> None:
        super().__init__()
        self.seen: list[int] = []
        self._look, self._order, self._looking = look, threading.Lock(), threading.local()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if not getattr(self._looking, "now", False):
            self._looking.now = True
            with self._order:
                self.seen.append(sum(self._look().values()))
            self._looking.now = False


def test_no_scrape_finds_less_than_one_before_it(open_node: NodeFactory) -> None:
    """A job's bytes are its own while it runs, and the engine's afterwards: never both, never neither."""
    images = {f"reg.test/m{seed}": simple_image(weights=[3000], seed=seed)[0] for seed in range(4)}
    node = open_node(images)
    metrics = watched(node)
    node.engine._wake = lock = LookedAt(node.engine.fetched_bytes)
    fetched = sum(pull(node, f"{name}:v1").fetched for name in images)
    assert lock.seen == sorted(lock.seen)
    assert len(set(lock.seen)) > len(images)
    assert sum(scraped(metrics).values()) == fetched


@dataclass
class Named:
    """A source of which only the name counts here."""

    name: str
    tier: Tier = Tier.REGISTRY
    authorizes: bool = True

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        return self._open()

    @contextmanager
    def _open(self) -> Iterator[BlobStream]:
        raise Unreachable("nobody reads it")
        yield


def a_job(names: Sequence[str]) -> Job:
    return Job(
        [], [Named(name) for name in names], {}, priority=0, monotonic=lambda: 0.0,
        policy=SourceRetryPolicy(),
    )  # fmt: skip


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
        st.tuples(st.just("count"), st.integers(0, 9), st.integers(0, 9), st.integers(0, 1000)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("scrape")),
    ),
    max_size=60,
)


@given(steps=STEPS)
def test_whatever_jobs_do_no_series_falls_and_their_number_is_bounded(
    steps: list[tuple[object, ...]],
) -> None:
    """The law of `FetchedBytes`, also where there are more sources than a metric has series."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(series, "MOST_SERIES", 4)
        counts, running = FetchedBytes(), list[Job]()
        total, last = 0, dict[tuple[str, ...], int]()
        for step in steps:
            match step:
                case ("begin", list(names)):
                    running.append(a_job([f"source-{name}" for name in names]))
                case ("count", int(which), int(source), int(size)) if running:
                    job = running[which % len(running)]
                    job.count(source % len(job.sources), size)
                    total += size
                case ("end", int(which)) if running:
                    counts.ended(running.pop(which % len(running)))
            now = dict(counts.total(running))
            assert sum(now.values()) == total
            assert all(now.get(labels, 0) >= size for labels, size in last.items())
            assert len(now) <= 4 + 1
            last = now
