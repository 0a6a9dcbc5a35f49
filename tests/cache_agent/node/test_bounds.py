"""Tables keyed by names that others choose: they don't grow with the number of names that were ever seen."""

from __future__ import annotations

from cache_agent.node.metrics import MOST_SERIES, Metrics
from cache_agent.observability.events import PeerEjected
from cache_agent.peers.reputation import HALF_LIFE_SECONDS, Offence, Reputation
from modelimage.registry.exchange import WebOrigin
from modelimage.registry.retry import HostPauses

NAMES = [f"name-{number}" for number in range(MOST_SERIES + 50)]


def test_peers_that_did_nothing_for_long_are_forgotten() -> None:
    now = [0.0]
    reputation = Reputation(lambda: now[0])
    for name in NAMES:
        reputation.note(name, Offence.LIED)
        now[0] += HALF_LIFE_SECONDS
    assert reputation.known() < 20


def test_hosts_whose_pause_is_over_are_forgotten() -> None:
    now = [0.0]
    pauses = HostPauses(lambda: now[0])
    for name in NAMES:
        pauses.pause(WebOrigin.parse(f"https://{name}.test"), 10.0)
        now[0] += 1.0
    assert pauses.known() <= 10
    assert pauses.remaining(WebOrigin.parse(f"https://{NAMES[-1]}.test")) == 9.0


def test_a_metric_has_a_bounded_number_of_series() -> None:
    metrics = Metrics()
    for name in NAMES:
        metrics.emit(PeerEjected("peer", name))
    text, _ = metrics.exposition()
    lines = [
        line
        for line in text.decode().splitlines()
        if line.startswith("weightyard_peers_ejected_total{")
    ]
    assert len(lines) == MOST_SERIES + 1
    assert 'weightyard_peers_ejected_total{reason="other"} 50.0' in lines
