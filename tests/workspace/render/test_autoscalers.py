"""The autoscalers of a Workspace: KEDA's published fields, and the measures that they read."""

from __future__ import annotations

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.workspace import samples
from tests.workspace.render.test_kubernetes import one, rendered
from workspace.engines import QUEUE_METRICS
from workspace.render.autoscalers import autoscaler
from workspace.runtime_spec import Engine
from workspace.schema import Workspace
from workspace.server_metrics import HELD

Json = dict[str, Any]

# KEDA's published fields of a ScaledObject's spec (config/crd/bases/keda.sh_scaledobjects.yaml).
KEDA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "advanced": {"type": "object"},
        "cooldownPeriod": {"type": "integer"},
        "fallback": {"type": "object"},
        "idleReplicaCount": {"type": "integer"},
        "maxReplicaCount": {"type": "integer"},
        "minReplicaCount": {"type": "integer"},
        "pollingInterval": {"type": "integer"},
        "scaleTargetRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                name: {"type": "string"}
                for name in ("apiVersion", "envSourceContainerName", "kind", "name")
            },
        },
        "triggers": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["metadata", "type"],
                "properties": {
                    "authenticationRef": {"type": "object"},
                    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                    "metricType": {"type": "string"},
                    "name": {"type": "string"},
                    "type": {"type": "string"},
                },
            },
        },
    },
}


def test_the_scaled_object_has_kedas_fields() -> None:
    scale = {"min": 0, "max": 3, "by": "keda", "prometheus": "http://prometheus:9090"}
    scaled = one(rendered(samples.workspace(scale=scale)), "ScaledObject")
    assert list(Draft202012Validator(KEDA).iter_errors(scaled["spec"])) == []
    metadata = scaled["spec"]["triggers"][0]["metadata"]
    # The Prometheus scaler's required metadata.
    assert {"serverAddress", "query", "threshold"} <= set(metadata)
    assert scaled["spec"]["scaleTargetRef"]["name"] == "chat"
    # Rendered for a cluster without a controller, in which nothing takes requests at 0.
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (1, 3)


def trigger_queries(**spec: Any) -> list[str]:
    (scaled,) = autoscaler(samples.workspace(**spec), {"name": "chat"})
    return [each["metadata"]["query"] for each in scaled["spec"]["triggers"]]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_autoscalers_read_the_gauges_of_the_engine(engine: str) -> None:
    running, waiting = QUEUE_METRICS[Engine(engine)]
    queue, work = trigger_queries(
        runtime={"engine": engine}, scale={"max": 3, "by": "keda", "prometheus": "http://p:9090"}
    )
    assert waiting in queue
    assert running in work
    spec = {"runtime": {"engine": engine}, "scale": {"max": 3, "by": "hpa"}}
    (hpa,) = autoscaler(samples.workspace(**spec), {"name": "chat"})
    assert hpa["spec"]["metrics"][0]["pods"]["metric"]["name"] == waiting.replace(":", "_")


@pytest.mark.parametrize("least", [0, 1])
def test_from_zero_keda_counts_what_the_activator_holds(least: int) -> None:
    keda = {"min": least, "max": 3, "by": "keda", "prometheus": "http://p:9090"}
    queue, _ = trigger_queries(scale=keda)
    found = re.search(HELD + r'\{namespace="[^"]*",pod=~"([^"]*)"', queue)
    assert (found is not None) == (least == 0)
    if found is not None:
        # The second name is one that the API server has cut.
        assert re.fullmatch(found[1], "chat--activator-7d9f8b6c5d-x2x4z")
        assert re.fullmatch(found[1], "chat--actix2x4z")
        assert not re.fullmatch(found[1], "chat-b--activator-7d9f8b6c5d-x2x4z")


@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        (
            "chat",
            "chat-7d9f8b6c5d-x2x4z",
            ["chat-b-7d9f8b6c5d-x2x4z", "chat-activator-7d9f8b6c5d-x2x4z"],
        ),
        # The API server cuts such names.
        ("c" * 52, f"{'c' * 52}-7d9f8x2x4z", [f"{'c' * 52}-b-7d9x2x4z"]),
        ("c" * 47, f"{'c' * 47}-7d9f8b6c5dx2x4z", []),
    ],
)
def test_keda_counts_the_pods_of_one_workspace(name: str, own: str, others: list[str]) -> None:
    scale = {"min": 0, "max": 3, "by": "keda", "prometheus": "http://prometheus:9090"}
    document = samples.workspace(scale=scale).to_document()
    document["metadata"]["name"] = name
    scaled = one(rendered(Workspace.model_validate(document)), "ScaledObject")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    pods = re.search(r'pod=~"([^"]*)"', query)
    assert pods is not None
    assert re.fullmatch(pods[1], own)
    assert not [each for each in others if re.fullmatch(pods[1], each)]


def test_kedas_scaling_behavior_is_the_autoscalers() -> None:
    keda = {"min": 1, "max": 3, "by": "keda", "prometheus": "http://prometheus:9090"}
    scaled = one(rendered(samples.workspace(scale=keda)), "ScaledObject")
    hpa = one(rendered(samples.workspace(scale={"min": 1, "max": 3, "by": "hpa"})),
              "HorizontalPodAutoscaler")  # fmt: skip
    config = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
    assert config["behavior"] == hpa["spec"]["behavior"]
