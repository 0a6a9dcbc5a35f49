"""Metrics pages are what the library writes for their scraper, though less is done for each of them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import choose_encoder

from cache_agent.api.exposition import exposition
from cache_agent.node.metrics import Metrics as AgentMetrics
from workspace.activator.gate import QueueLimits, RequestQueue
from workspace.activator.metrics import ActivatorMetrics
from workspace.controller.process.metrics import Metrics as ControllerMetrics

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
# As Prometheus asks; as older scrapers do; with names in other spellings.
ACCEPTS = (
    f"{OPENMETRICS};escaping=allow-utf-8;q=0.6,{OPENMETRICS};q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    OPENMETRICS,
    f"{OPENMETRICS};escaping=dots",
    f"{OPENMETRICS};escaping=values",
    "text/plain;version=1.0.0",
    "text/plain",
)


def odd_registry() -> CollectorRegistry:
    """Values that have to be escaped."""
    registry = CollectorRegistry()
    Counter("odd", 'a "text"\nof two lines', ["source"], registry=registry).labels('a"\n\\b').inc()
    return registry


async def nowhere() -> None:
    """No server is ready."""


@pytest.mark.parametrize("accept", ACCEPTS)
@pytest.mark.parametrize(
    "registry",
    [
        AgentMetrics().registry, ControllerMetrics().registry,
        ActivatorMetrics(RequestQueue(nowhere, QueueLimits())).registry, odd_registry(),
    ],
    ids=["agent", "controller", "activator", "odd"],
)  # fmt: skip
def test_a_page_is_what_the_library_writes(registry: CollectorRegistry, accept: str) -> None:
    encode, content_type = choose_encoder(accept)
    page, told = exposition(registry, accept, traced=True)
    assert told == content_type
    assert page == encode(registry)
