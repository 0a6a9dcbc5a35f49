"""Tracing in the chart: off unless asked for, and everything that sends spans knows the collector and reaches it."""

from __future__ import annotations

import re
from typing import Any

from tests.chart.charting import CHART, find, render
from tests.chart.matrix import MATRIX
from weightyard.commands.controller import controller
from workspace.render.trace_settings import TraceSettings

Json = dict[str, Any]
MONITORING = {"kubernetes.io/metadata.name": "monitoring"}
COMPONENTS = (("DaemonSet", "agent"), ("Deployment", "controller"))


def container(objects: list[Json], kind: str, component: str) -> Json:
    pod = find(objects, kind, f"-{component}")["spec"]["template"]["spec"]
    found: Json = next(each for each in pod["containers"] if each["name"] == component)
    return found


def variables(objects: list[Json], kind: str, component: str) -> dict[str, str]:
    listed = container(objects, kind, component).get("env") or []
    return {each["name"]: each["value"] for each in listed if each["name"].startswith("OTEL_")}


def test_it_is_off_unless_asked_for() -> None:
    objects = render()
    for kind, component in COMPONENTS:
        assert variables(objects, kind, component) == {}
    assert "--trace" not in str(container(objects, *COMPONENTS[1])["args"])


def test_agents_and_controllers_know_the_collector_and_controllers_what_to_pass_on() -> None:
    objects = render(MATRIX["traced"])
    for kind, component in COMPONENTS:
        found = variables(objects, kind, component)
        assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.monitoring:4318"
        assert found["OTEL_TRACES_SAMPLER"] == "always_on"
    agent = variables(objects, *COMPONENTS[0])
    assert agent["OTEL_RESOURCE_ATTRIBUTES"] == "k8s.node.name=$(NODE_NAME)"
    args = container(objects, *COMPONENTS[1])["args"][1:]
    given = controller.make_context("controller", list(args)).params
    assert given["trace_servers"] == "http://collector.monitoring:4317"
    assert given["traces_in"] == ("kubernetes.io/metadata.name=monitoring",)
    assert TraceSettings.of(variables(objects, *COMPONENTS[1])).is_on


def test_every_image_has_what_sends_spans() -> None:
    text = (CHART.parents[1] / "Dockerfile.agent").read_text()
    installs = re.findall(r"install\.py /opt/weightyard (\S+)", text)
    assert len(installs) == 3
    assert all("trace" in each.split(",") for each in installs)


def test_policies_let_them_reach_it() -> None:
    for _, component in COMPONENTS:
        policy = find(render(MATRIX["traced"]), "NetworkPolicy", f"-{component}")
        peers = [peer for rule in policy["spec"]["egress"] for peer in rule.get("to", ())]
        selectors = [peer["namespaceSelector"] for peer in peers if "namespaceSelector" in peer]
        assert {"matchLabels": MONITORING} in selectors or {} in selectors
