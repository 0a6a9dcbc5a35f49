"""The agent's metrics: the tables, what they count, and the page that lists them."""

from __future__ import annotations

from typing import get_args

from cache_agent.node.metrics import COUNTERS, GAUGES, HISTOGRAMS, Metrics
from cache_agent.observability.events import (
    Event,
    ModelEvicted,
    PeerEjected,
    PublishEnded,
    PullEnded,
    PullStarted,
)
from cache_agent.observability.log_lines import LINES
from scripts import operations_docs
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, pull


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"weightyard_{name}", labels)


def test_events_are_counted_by_the_tables() -> None:
    metrics = Metrics()
    metrics.emit(PullStarted("m"))
    metrics.emit(PullEnded("m", "done", 2.0, 7, [("hub", "a", 5), ("peer", "b", 6)]))
    metrics.emit(PullEnded("m", "NoSpace", 900.0, 1, [("hub", "a", 1)]))
    metrics.emit(ModelEvicted("m", 300, "least valuable"))
    metrics.emit(PeerEjected("b", "lied"))
    metrics.emit(PublishEnded("StillPulling"))
    metrics.emit(PublishEnded("done", 3.0, [("cached", 4), ("peer", 9)]))
    assert value(metrics, "publishes_finished_total", outcome="StillPulling") == 1
    assert value(metrics, "publish_seconds_sum") == 3
    assert value(metrics, "published_bytes_total", tier="peer") == 9
    assert value(metrics, "pulls_started_total") == 1
    assert value(metrics, "pulls_finished_total", outcome="NoSpace") == 1
    assert value(metrics, "fetched_bytes_total", tier="hub", source="a") == 6
    assert value(metrics, "reused_bytes_total") == 8
    assert value(metrics, "evicted_bytes_total") == 300
    assert value(metrics, "peers_ejected_total", reason="lied") == 1
    assert value(metrics, "pull_seconds_count") == 1, "failed pulls would distort it"


def test_gauges_are_read_from_the_store(open_node: NodeFactory) -> None:
    image, record, _ = simple_image(weights=[9000])
    node = open_node({"reg.test/m": image})
    pull(node)
    node.store.models.pin(record.key, pinned=True)
    metrics = Metrics()
    metrics.watch(node.store, node.engine)
    assert value(metrics, "models") == value(metrics, "models_pinned") == 1
    assert value(metrics, "files") == node.store.files.count()
    assert (value(metrics, "oldest_verification_timestamp_seconds") or 0) > 0
    assert value(metrics, "fetch_requests_waiting") == value(metrics, "fetch_requests_running") == 0
    root = str(node.store.first.paths.root)
    assert value(metrics, "store_bytes", root=root) == node.store.first.space.view().own


def test_every_event_is_counted_or_logged_and_every_name_used_once() -> None:
    names = [*(row.name for row in (*COUNTERS, *HISTOGRAMS)), *(row.name for row in GAUGES)]
    assert len(set(names)) == len(names)
    fed = {row.event for row in (*COUNTERS, *HISTOGRAMS)}
    assert fed | LINES.keys() == set(get_args(Event))


def test_the_page_lists_every_metric_and_log_line() -> None:
    """`python -m scripts.operations_docs` writes the tables anew."""
    text = operations_docs.PAGE.read_text()
    assert text == operations_docs.page(text)
