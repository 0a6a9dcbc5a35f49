"""Alerts, dashboard and scrapes: every metric that they name is one that an agent has."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

import pytest
import yaml

from cache_agent.node.metrics import Metrics
from tests.cache_agent.nodes import NodeFactory
from tests.chart.charting import CHART, Refused, find, render
from tests.chart.matrix import MATRIX

FILES = CHART / "files"
NAME = re.compile(r"\bweightyard_[a-z_]+")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of an agent's metrics, as Prometheus keeps them."""
    metrics = Metrics()
    with ExitStack() as stack:
        node = NodeFactory(tmp_path_factory.mktemp("store"), stack)()
        metrics.watch(node.store)
        families = [*metrics.registry.collect()]
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + end for family in families for end in ends[family.type]}


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
def test_every_metric_exists(file: str, exported: set[str]) -> None:
    named = set(NAME.findall((FILES / file).read_text()))
    assert named
    assert named <= exported


@pytest.mark.parametrize(
    ("case", "kind", "where"),
    [("monitored", "ServiceMonitor", "endpoints"), ("pod-monitored", "PodMonitor", "podMetricsEndpoints")],
)  # fmt: skip
def test_prometheus_finds_the_agents(case: str, kind: str, where: str) -> None:
    objects = render(MATRIX[case])
    monitor = find(objects, kind)["spec"]
    (endpoint,) = monitor[where]
    container = find(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    labels = find(objects, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()


def test_two_monitors_would_count_everything_twice() -> None:
    both = {"monitoring": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}}
    with pytest.raises(Refused, match="enable one"):
        render(both)


def test_alerts_say_what_to_do() -> None:
    """Each alert has a section in the runbook."""
    runbook = (CHART.parents[1] / "docs" / "operations.md").read_text()
    groups = yaml.safe_load((FILES / "alerts.yaml").read_text())
    for rule in [rule for group in groups for rule in group["rules"]]:
        assert f"### {rule['alert']}\n" in runbook
        assert rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}")


def test_the_dashboard_has_no_panel_twice() -> None:
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
