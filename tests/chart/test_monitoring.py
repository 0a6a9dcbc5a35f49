"""Alerts, dashboards and scrapes: every metric that they name is one that an agent or a controller has."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache_agent.api import build_info
from cache_agent.node.metrics import (
    COUNTERS,
    ENGINE_COUNTERS,
    GAUGES,
    HISTOGRAMS,
    PREFIX,
    MetricRow,
    Metrics,
)
from tests.cache_agent.nodes import NodeFactory
from tests.chart.charting import CHART, Refused, find, render
from tests.chart.matrix import MATRIX
from workspace.activator import metrics as activator_metrics
from workspace.activator.gate import QueueLimits, RequestQueue
from workspace.controller.process import metrics as controller_metrics
from workspace.controller.reasons import Reason

FILES = CHART / "files"
DASHBOARDS = sorted(f"dashboards/{each.name}" for each in (FILES / "dashboards").iterdir())
QUERYING = ["alerts.yaml", *DASHBOARDS]
NAME = re.compile(r"\b(?:weightyard_[a-z_]+|DCGM_[A-Z_]+|vllm:[a-z_]+)")
# Of NVIDIA's exporter for Prometheus (dcgm-exporter, default counters), and of vLLM (vllm/v1/metrics/loggers.py).
FOREIGN = {
    **{f"DCGM_FI_DEV_{name}": {"gpu", "Hostname"} for name in ("GPU_UTIL", "FB_USED", "FB_FREE")},
    **{
        f"vllm:{name}": {"model_name", "engine"}
        for name in ("num_requests_running", "num_requests_waiting", "generation_tokens_total", "kv_cache_usage_perc")
    },
    **{
        f"vllm:{name}_bucket": {"model_name", "engine", "le"}
        for name in ("time_to_first_token_seconds", "request_time_per_output_token_seconds")
    },
}  # fmt: skip
# Labels that a scrape adds.
SCRAPED = frozenset({"instance", "namespace", "pod"})
# Grafana's variables, as it fills them in.
FILLED = {"$__rate_interval": "5m", "$instance": ".*", "$namespace": ".*"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """An agent's and a controller's metrics, by the names that Prometheus keeps, with their labels."""
    metrics, controller = Metrics(), controller_metrics.Metrics()
    with ExitStack() as stack:
        node = NodeFactory(tmp_path_factory.mktemp("store"), stack)()
        metrics.watch(node.store, node.engine)
        controller.watch(lambda: controller_metrics.ControllerSnapshot(True, {}, {}, 0))
        families = [*metrics.registry.collect(), *controller.registry.collect()]
    rows: list[MetricRow] = [*COUNTERS, *ENGINE_COUNTERS, *HISTOGRAMS, *GAUGES]
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
        board = json.loads(text)
        found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        return [*found, *variables(board)]
    return [rule["expr"] for group in yaml.safe_load(text) for rule in group["rules"]]


def variables(board: dict[str, Any]) -> list[str]:
    """What a dashboard's variables ask for, as a query that has the same metric and label."""
    asked = [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    return [re.sub(r"label_values\((.+), (\w+)\)", r"count by (\2) (\1)", each) for each in asked]


def filled(query: str) -> str:
    for name, value in FILLED.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


@pytest.mark.parametrize("file", QUERYING)
def test_every_metric_label_and_reason_exists(file: str, exported: dict[str, set[str]]) -> None:
    for query in queries(file):
        named = NAME.findall(query)
        assert named
        assert set(named) <= exported.keys()
        lists = re.findall(r"(?:by|on|without|ignoring) *\(([^)]*)\)", query)
        labels = {label.strip() for each in lists for label in each.split(",")}
        labels |= set(re.findall(r"[{,] *(\w+) *(?:=|!)", query))
        assert labels <= SCRAPED.union(*(exported[name] for name in named))
        words = {
            word for each in re.findall(r'reason=~"([^"]+)"', query) for word in each.split("|")
        }
        assert words <= {each.value for each in Reason}


@pytest.mark.servers
@pytest.mark.parametrize("file", QUERYING)
def test_every_query_is_one_for_prometheus(file: str, tmp_path: Path) -> None:
    """By Prometheus' own parser: grammar, functions, and types of arguments."""
    rules = [
        {"record": f"query:{place}", "expr": filled(each)}
        for place, each in enumerate(queries(file))
    ]
    written = tmp_path / "rules.yaml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(written)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def fired(rule: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    """What an alert is once it fires with some labels and the value 1."""
    notes = rule["annotations"]
    summary = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], notes["summary"])
    said = {**notes, "summary": summary.replace("{{ $value }}", "1")}
    return {"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": said}


@pytest.mark.servers
def test_alerts_fire_for_what_they_are_about_and_for_nothing_else(tmp_path: Path) -> None:
    """Prometheus runs them over series of an agent that hangs, one that works, and Workspaces in some states."""
    groups = yaml.safe_load((FILES / "alerts.yaml").read_text())
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": groups}))
    series = {
        'weightyard_pulls_started_total{instance="hangs"}': "5x300",
        'weightyard_pulls_finished_total{instance="hangs",outcome="done"}': "4x300",
        'weightyard_pulls_started_total{instance="works"}': "5+1x300",
        'weightyard_pulls_finished_total{instance="works",outcome="done"}': "4+1x300",
        'weightyard_controller_leads{namespace="w",pod="a"}': "1x300",
        'weightyard_controller_workspaces{namespace="w",pod="a",reason="Regressed"}': "0x200 1x100",
        'weightyard_controller_workspaces{namespace="w",pod="a",reason="Paused"}': "1x300",
        'weightyard_controller_workspaces{namespace="w",pod="a",reason="CrashLoopBackOff"}': "1x5 0x295",
    }
    fires = {
        "WeightyardPullsHang": {"instance": "hangs"},
        "WeightyardRolloutTakenBack": {"namespace": "w", "reason": "Regressed"},
    }
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    expected = [
        {
            "eval_time": "290m", "alertname": name,
            "exp_alerts": [fired(rule, fires[name])] if name in fires else [],
        }
        for name, rule in rules.items()
    ]  # fmt: skip
    test = {
        "rule_files": ["alerts.yaml"], "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m", "alert_rule_test": expected,
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
        }],
    }  # fmt: skip
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


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


def test_dashboards_and_their_panels_are_not_there_twice() -> None:
    boards = [json.loads((FILES / each).read_text()) for each in DASHBOARDS]
    for name in ("uid", "title"):
        assert len({each[name] for each in boards}) == len(boards) == 3
    for board in boards:
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len({panel["title"] for panel in panels}) == len(panels)
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
        assert len(set(places)) == len(panels)
        assert "weightyard" in board["tags"]


def test_the_chart_brings_every_dashboard_whole() -> None:
    found = find(render(MATRIX["monitored"]), "ConfigMap", "-dashboards")
    assert {f"dashboards/{name.removeprefix('weightyard-')}" for name in found["data"]} == set(
        DASHBOARDS
    )
    for name, text in found["data"].items():
        assert json.loads(text)["uid"] == name.removesuffix(".json")


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
