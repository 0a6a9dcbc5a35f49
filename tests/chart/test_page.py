"""The page in the chart: off unless asked for, on loopback of agents, and closed to pods that nobody named."""

from __future__ import annotations

from typing import Any

import yaml

from tests.chart.charting import find, render
from tests.chart.matrix import MATRIX

Json = dict[str, Any]
CONTROLLER = "weightyard-controller"


def arguments(objects: list[Json]) -> list[str]:
    deployment = find(objects, "Deployment", CONTROLLER)
    found: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def agent_settings(objects: list[Json]) -> Json:
    found: Json = yaml.safe_load(
        find(objects, "ConfigMap", "weightyard-agent")["data"]["agent.yaml"]
    )
    return found


def page_peers(objects: list[Json]) -> list[Json]:
    """Who a policy lets reach the page."""
    rules = find(objects, "NetworkPolicy", CONTROLLER)["spec"]["ingress"]
    return [peer for rule in rules if "page" in str(rule["ports"]) for peer in rule["from"]]


def test_it_is_off_unless_asked_for() -> None:
    objects = render()

    assert not [each for each in arguments(objects) if "--page" in each]
    assert "port" not in agent_settings(objects)
    assert "weightyard-page" not in {each["metadata"]["name"] for each in objects}


def test_a_service_leads_to_the_controllers_and_only_named_namespaces_reach_it() -> None:
    objects = render(MATRIX["page"])

    assert "--page=0.0.0.0:9000" in arguments(objects)
    service = find(objects, "Service", "weightyard-page")["spec"]
    pod = find(objects, "Deployment", CONTROLLER)["spec"]["template"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    ports = {each["name"] for each in pod["spec"]["containers"][0]["ports"]}
    assert service["ports"][0]["targetPort"] in ports
    labels = {"kubernetes.io/metadata.name": "ingress"}
    assert page_peers(objects) == [{"namespaceSelector": {"matchLabels": labels}}]
    assert page_peers(render({"page": {"enabled": True}})) == []


def test_an_agent_serves_it_on_the_loopback_port_that_the_operator_chose() -> None:
    assert agent_settings(render(MATRIX["page"]))["port"] == 9000
    chosen = {**MATRIX["page"], "agent": {"config": {"port": 7000}}}
    assert agent_settings(render(chosen))["port"] == 7000
