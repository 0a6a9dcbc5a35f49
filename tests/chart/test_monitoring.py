"""Alerts, dashboard and scrapes: every metric that they name is one that an agent or a controller has."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

import pytest
import yaml

from cache_agent.api import build_info
from cache_agent.node.metrics import COUNTERS, GAUGES, HISTOGRAMS, PREFIX, Metrics
from tests.cache_agent.nodes import NodeFactory
from tests.chart.charting import CHART, Refused, find, render
from tests.chart.matrix import MATRIX
from workspace.activator import metrics as activator_metrics
from workspace.activator.gate import QueueLimits, RequestQueue
from workspace.controller import metrics as controller_metrics

FILES = CHART / "files"
NAME = re.compile(r"\b(?:weightyard_[a-z_]+|DCGM_[A-Z_]+)")
# Of NVIDIA's exporter for Prometheus (dcgm-exporter, default counters), with its labels.
FOREIGN = {name: {"gpu", "Hostname"} for name in ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED")}
# Labels that a scrape adds.
SCRAPED = frozenset({"instance", "namespace", "pod"})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """An agent's and a controller's metrics, by the names that Prometheus keeps, with their labels."""
    metrics, controller = Metrics(), controller_metrics.Metrics()
    with ExitStack() as stack:
        node = NodeFactory(tmp_path_factory.mktemp("store"), stack)()
        metrics.watch(node.store, node.engine)
        controller.watch(lambda: controller_metrics.ControllerSnapshot(True, {}, {}, 0))
        families = [*metrics.registry.collect(), *controller.registry.collect()]
    rows = [*COUNTERS, *HISTOGRAMS, *GAUGES]
    labels = {f"{PREFIX}{row.name}": {*row.labels} for row in rows}
    ours = [
        *controller_metrics.COUNTERS,
        *controller_metrics.HISTOGRAMS,
        *controller_metrics.GAUGES,
    ]
    labels |= {f"{controller_metrics.PREFIX}{row.name}": {*row.labels} for row in ours}
    labels[build_info.NAME] = {*build_info.LABELS}
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return FOREIGN | {
        family.name + end: labels[family.name] | ({"le"} if end == "_bucket" else set())
        for family in families
        for end in ends[family.type]
    }


def queries(file: str) -> list[str]:
    text = (FILES / file).read_text()
    if file.endswith(".json"):
        panels = json.loads(text)["panels"]
        return [target["expr"] for panel in panels for target in panel["targets"]]
    return [rule["expr"] for group in yaml.safe_load(text) for rule in group["rules"]]


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
def test_every_metric_and_label_exists(file: str, exported: dict[str, set[str]]) -> None:
    for query in queries(file):
        named = NAME.findall(query)
        assert named
        assert set(named) <= exported.keys()
        lists = re.findall(r"(?:by|on|without|ignoring) *\(([^)]*)\)", query)
        labels = {label.strip() for each in lists for label in each.split(",")}
        labels |= set(re.findall(r"[{,] *(\w+) *(?:=|!)", query))
        assert labels <= SCRAPED.union(*(exported[name] for name in named))


@pytest.mark.parametrize(
    ("case", "kind", "where"),
    [("monitored", "ServiceMonitor", "endpoints"), ("pod-monitored", "PodMonitor", "podMetricsEndpoints")],
)  # fmt: skip
def test_prometheus_finds_the_agents(case: str, kind: str, where: str) -> None:
    objects = render(MATRIX[case])
    monitor = find(objects, kind, "-agent")["spec"]
    (endpoint,) = monitor[where]
    container = find(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    labels = find(objects, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("case", ["monitored", "pod-monitored"])
def test_prometheus_finds_the_controllers_and_may_reach_them(case: str) -> None:
    objects = render(MATRIX[case])
    monitor = find(objects, "PodMonitor", "-controller")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    pod = find(objects, "Deployment", "-controller")["spec"]["template"]
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert endpoint["port"] in ports
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (allowed,) = find(objects, "NetworkPolicy", "-controller")["spec"]["ingress"]
    assert [port["port"] for port in allowed["ports"]] == [endpoint["port"]]


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


def test_every_program_says_its_version() -> None:

    async def nowhere() -> None:
        return None

    gate = RequestQueue(nowhere, QueueLimits())
    pages = {
        "agent": Metrics().exposition()[0],
        "controller": controller_metrics.Metrics().exposition()[0],
        "activator": activator_metrics.ActivatorMetrics(gate).page()[0],
    }
    for component, page in pages.items():
        assert f'{build_info.NAME}{{component="{component}",version="' in page.decode()
