"""The agent's metrics: the tables, what they count, and the page that lists them."""

from __future__ import annotations

from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cache_agent.node.metrics import (
    COUNTERS,
    ENGINE_COUNTERS,
    GAUGES,
    HISTOGRAMS,
    MODEL_GAUGES,
    MetricRow,
    Metrics,
)
from cache_agent.observability.events import (
    Event,
    EvictionReason,
    ModelEvicted,
    PeerEjected,
    PublishEnded,
    PullEnded,
    PullStarted,
)
from cache_agent.observability.log_lines import LINES
from cache_agent.prewarm.outcome_log import OutcomeLog
from cache_agent.prewarm.values import ModelOutcome
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
    metrics.emit(ModelEvicted("m", 300, EvictionReason.PULL, "least valuable"))
    metrics.emit(PeerEjected("b", "lied"))
    metrics.emit(PublishEnded("StillPulling"))
    metrics.emit(PublishEnded("done", 3.0, [("cached", 4), ("peer", 9)]))
    assert value(metrics, "publishes_finished_total", outcome="StillPulling") == 1
    assert value(metrics, "publish_seconds_sum") == 3
    assert value(metrics, "published_bytes_total", tier="peer") == 9
    assert value(metrics, "pulls_started_total") == 1
    assert value(metrics, "pulls_finished_total", outcome="NoSpace") == 1
    assert value(metrics, "reused_bytes_total") == 8
    assert value(metrics, "evicted_bytes_total", reason="pull") == 300
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


HOSTILE = 'reg.test/m"} 1\nforged{x="\\'  # would end a label, and begin a line


def test_a_page_of_single_models_has_what_each_has(open_node: NodeFactory) -> None:
    image, record, _ = simple_image(weights=[9000])
    node = open_node({"reg.test/m": image})
    pull(node)
    metrics = Metrics()
    metrics.watch(node.store, node.engine)
    page, _ = metrics.detail_exposition()
    found = {
        sample.name: sample
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }
    assert found.keys() == {f"weightyard_{name}" for name, _, _ in MODEL_GAUGES}
    size = found["weightyard_model_bytes"]
    assert size.labels == {"model": record.key.short, "image": "reg.test/m:v1", "variant": "bf16"}
    assert size.value >= 9000
    assert record.key.short not in metrics.exposition()[0].decode()


def test_no_name_of_a_model_ends_its_label(open_node: NodeFactory) -> None:
    """Names come from others; whoever forges a line of a page can hide or raise an alert."""
    metrics = Metrics()
    metrics.emit(PeerEjected("b", HOSTILE))
    page = metrics.exposition()[0].decode()
    families = {family.name for family in text_string_to_metric_families(page)}
    assert "forged" not in families
    assert value(metrics, "peers_ejected_total", reason=HOSTILE) == 1


@pytest.mark.parametrize(
    ("traced", "accept", "openmetrics"),
    [
        (True, "application/openmetrics-text;version=1.0.0", True),
        (True, "text/plain", False),
        (True, "", False),
        (True, "x" * 100_000, False),
        (False, "application/openmetrics-text;version=1.0.0", False),
    ],
)
def test_slow_pulls_lead_to_their_traces(traced: bool, accept: str, openmetrics: bool) -> None:
    trace = "4b" * 16
    metrics = Metrics(traced=traced)
    metrics.emit(PullEnded("m", "done", 2.0, 7, [], trace=f"00-{trace}-{'f0' * 8}-01"))
    metrics.emit(PullEnded("m", "done", 2.0, 7, [], trace="nonsense"))
    page, content_type = metrics.exposition(accept)
    assert content_type.startswith("application/openmetrics") == openmetrics
    assert (trace in page.decode()) == openmetrics
    assert value(metrics, "pull_seconds_count") == 2


def test_a_desired_model_counts_from_when_it_was_missing() -> None:
    now, told = [100.0], list[float]()
    log = OutcomeLog(
        lambda event, **fields: None, lambda: now[0], told.append, lambda *failure: None
    )
    fetching, ready = (ModelOutcome(state=state) for state in ("Fetching", "Ready"))
    log.report({"new": fetching, "held": ready})
    now[0] = 130.0
    log.report({"new": fetching, "held": fetching})
    now[0] = 160.0
    log.report({"new": ready, "held": ready})
    log.report({"new": ready, "held": ready})
    assert told == [60.0, 30.0]


def test_every_event_is_counted_or_logged_and_every_name_used_once() -> None:
    fed_by_events = (*COUNTERS, *HISTOGRAMS)
    rows: list[MetricRow] = [*fed_by_events, *ENGINE_COUNTERS, *GAUGES]
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    fed = {row.event for row in fed_by_events}
    assert fed | LINES.keys() == set(get_args(Event))


def test_the_page_lists_every_metric_and_log_line() -> None:
    """`python -m scripts.operations_docs` writes the tables anew."""
    text = operations_docs.PAGE.read_text()
    assert text == operations_docs.page(text)
