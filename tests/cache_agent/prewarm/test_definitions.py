"""CachedModel and NodeCache: their CRDs are structural, say what the models say, and are what the chart ships."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cache_agent.api import cached_model, node_cache
from cache_agent.api.cached_model import CachedModel
from cache_agent.api.definitions import (
    CACHED_MODEL_RULES,
    DEFINITIONS,
    cached_model_definition,
    node_cache_definition,
    to_yaml,
)
from cache_agent.api.kube_objects import API_VERSION, timestamp
from cache_agent.api.node_cache import DesiredModelStatus, Held, NodeCache, NodeCacheStatus
from tests.cache_agent.prewarm import documents
from tests.workspace import openapi
from tests.workspace.served import (
    assert_columns_read_fields,
    assert_structural,
    broken_rules,
    server_accepts,
)

Json = dict[str, Any]
CHART = Path(__file__).parents[3] / "charts" / "weightyard" / "crds"
PLURALS = pytest.mark.parametrize("plural", DEFINITIONS)


def schema_of(definition: Json) -> Json:
    (version,) = definition["spec"]["versions"]
    found: Json = version["schema"]["openAPIV3Schema"]
    return found


def models_accept(document: Json) -> bool:
    try:
        CachedModel.parse(document)
    except ValidationError:
        return False
    return True


@PLURALS
def test_the_chart_ships_what_the_models_say(plural: str) -> None:
    text = (CHART / f"{plural}.yaml").read_text()
    assert text == to_yaml(plural), f"run: python -m cache_agent.api.definitions {plural}"
    assert yaml.safe_load(text) == DEFINITIONS[plural]()


@PLURALS
def test_a_server_accepts_the_definition(plural: str) -> None:
    for version in (openapi.OLDEST, openapi.NEWEST):
        assert openapi.problems(DEFINITIONS[plural](), version) == []


@PLURALS
def test_the_definition_is_structural_and_its_columns_exist(plural: str) -> None:
    definition = DEFINITIONS[plural]()
    assert_structural(schema_of(definition))
    assert_columns_read_fields(definition)


@pytest.mark.parametrize(
    ("definition", "types"),
    [
        (cached_model_definition(), cached_model.CONDITIONS),
        (node_cache_definition(), node_cache.CONDITIONS),
    ],
)
def test_conditions_can_be_waited_for(definition: Json, types: tuple[str, ...]) -> None:
    """`kubectl wait --for=condition=Ready` reads the condition's status and compares its observedGeneration."""
    (version,) = definition["spec"]["versions"]
    assert "status" in version["subresources"]
    conditions = schema_of(definition)["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    properties = conditions["items"]["properties"]
    assert "observedGeneration" in properties
    assert tuple(properties["type"]["enum"]) == types
    assert "Ready" in types


@given(documents.SPECS)
def test_server_and_agent_accept_the_same_documents(spec: Json) -> None:
    document = documents.cached_model() | {"spec": spec}
    schema = schema_of(cached_model_definition())
    repeated = len(set(days := spec.get("window", {}).get("days", []))) < len(days)
    # A file may name a layout on its node; an object of the cluster may not.
    image = str(spec.get("image"))
    layout = image.startswith("oci:") and not image.startswith("oci://")
    assert (server_accepts(schema, document) and not repeated) == (
        models_accept(document) and not layout
    )


def test_each_rule_refuses_what_it_is_for() -> None:
    refused = [
        documents.cached_model(image="docker:mine"),
        documents.cached_model(nodeSelector={"": "a"}),
        documents.cached_model(window={"start": "01:00", "end": "01:00"}),
    ]
    schema = schema_of(cached_model_definition())
    said = [message for each in refused for message in broken_rules(schema, each)]
    assert said == [message for rules in CACHED_MODEL_RULES.values() for _, message in rules]


def test_a_node_cache_is_named_after_its_node() -> None:
    schema = schema_of(node_cache_definition())
    document = {"metadata": {"name": "a"}, "spec": {"node": "a"}}
    assert list(broken_rules(schema, document)) == []
    document["metadata"]["name"] = "b"
    assert list(broken_rules(schema, document)) == ["a NodeCache has its node's name"]


def test_what_an_agent_reports_fits_the_definition_and_reads_back() -> None:
    cache = NodeCache.model_validate(
        {
            "apiVersion": API_VERSION, "kind": "NodeCache",
            "metadata": {"name": "n1"}, "spec": {"node": "n1"},
        }
    )  # fmt: skip
    status = NodeCacheStatus(
        desired=(DesiredModelStatus(name="chat", state="Fetching", bytes_done=1, bytes_total=2),),
        models=(Held(key="sha256:1", image="a", variant="bf16", size=2, verified_at=timestamp(1)),),
    )
    reported = cache.model_copy(update={"status": status})
    document = reported.to_document()
    assert server_accepts(schema_of(node_cache_definition()), document)
    assert NodeCache.model_validate(document) == reported


def test_a_later_version_s_fields_are_passed_over_in_a_report_and_refused_in_a_wish() -> None:
    document = documents.cached_model() | {"status": {"percent": 5, "later": 1}}
    assert CachedModel.parse(document).status.percent == 5
    assert not models_accept(documents.cached_model(later=1))


@given(st.integers(0, 4_000_000_000))
def test_times_read_back(seconds: int) -> None:
    assert datetime.fromisoformat(timestamp(seconds)).timestamp() == seconds
