"""The CRD is structural, says the same as the pydantic schema, and is what the chart ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft4Validator
from pydantic import BaseModel, ValidationError

from cache_agent.api import definitions
from cache_agent.api.node_cache import DesiredModelStatus
from tests.workspace import openapi, samples, templates
from tests.workspace.served import (
    assert_columns_read_fields,
    assert_structural,
    broken_rules,
    server_accepts,
    subschemas,
)
from workspace import crd
from workspace.controller import conditions
from workspace.controller.conditions import StatusCondition
from workspace.controller.reasons import Reason
from workspace.rollout_spec import Rollout
from workspace.route_spec import Route
from workspace.runtime_spec import Runtime
from workspace.scale_spec import Scale
from workspace.schema import Model, Resources, Workspace
from workspace.template_spec import PodTemplate
from workspace.tenancy import Tenancy

Json = dict[str, Any]
CHART_FILE = Path(__file__).parents[2] / "charts" / "weightyard" / "crds" / "workspaces.yaml"
SCHEMA = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_chart_ships_what_the_schema_says() -> None:
    assert CHART_FILE.read_text() == crd.to_yaml(), "run: python -m workspace.crd > " + str(
        CHART_FILE
    )


@pytest.mark.parametrize("version", [openapi.OLDEST, openapi.NEWEST])
def test_a_server_accepts_the_definition(version: str) -> None:
    assert openapi.problems(crd.definition(), version) == []


def test_the_schema_is_structural() -> None:
    assert_structural(SCHEMA)


def test_lists_and_texts_that_rules_run_over_are_bounded() -> None:
    """A server estimates a rule's cost from the largest value it could meet, and refuses what may cost too much."""
    for path, schema in subschemas(SCHEMA["properties"]["spec"]):
        within_list = "[items]" in path
        if within_list and "x-kubernetes-validations" in schema:
            holder = path.partition("[items]")[0]
            assert "maxItems" in dict(subschemas(SCHEMA["properties"]["spec"]))[holder]


DEFINITIONS = pytest.mark.parametrize(
    "definition",
    [crd.definition, definitions.cached_model_definition, definitions.node_cache_definition],
)
_LARGEST = {"string": "maxLength", "array": "maxItems", "integer": "maximum", "number": "maximum"}


def own_schemas(definition: Callable[[], Json]) -> list[tuple[str, Json]]:
    """The parts of a kind's spec and status, each with its path."""
    whole = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return [
        found
        for part in ("spec", "status")
        for found in subschemas(whole["properties"][part], f"$.{part}")
    ]


def is_bounded(schema: Json) -> bool:
    """Whether no value can be larger than the schema says."""
    if "additionalProperties" in schema:
        return "maxProperties" in schema
    if "enum" in schema or schema.get("format") == "date-time":
        return True
    if schema["type"] in ("integer", "number") and "minimum" not in schema:
        return False
    return _LARGEST.get(schema["type"], "type") in schema


@DEFINITIONS
def test_kubectl_explains_every_field(definition: Callable[[], Json]) -> None:
    missing = [
        path for path, schema in own_schemas(definition)
        # Items of lists and maps are explained by what holds them.
        if not path.endswith("]") and len(schema.get("description", "")) < len("HH:MM.")
    ]  # fmt: skip
    assert missing == []


@DEFINITIONS
def test_every_value_is_bounded(definition: Callable[[], Json]) -> None:
    assert [path for path, schema in own_schemas(definition) if not is_bounded(schema)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"}, {"type": "array", "items": {}}, {"type": "integer", "minimum": 0},
        {"type": "number", "maximum": 1}, {"type": "object", "additionalProperties": {}},
    ],
)  # fmt: skip
def test_the_check_of_bounds_sees_what_has_none(schema: Json) -> None:
    assert not is_bounded(schema)


@given(words=st.text(max_size=8), times=st.integers(1, 40_000), count=st.integers(0, 1 << 70))
def test_what_is_too_long_is_cut_and_not_refused(words: str, times: int, count: int) -> None:
    """An API server refuses a status as a whole, so one long error would hide everything else."""
    long = words * times
    said = StatusCondition("Ready", False, Reason.FAILED, long)
    merged = conditions.merge((), [said], generation=1, now="2026-01-01T00:00:00Z")
    validator = Draft4Validator(crd.status_schema())
    assert list(validator.iter_errors({"conditions": merged})) == []
    entry = DesiredModelStatus(name="a", state="Failed", message=long, image=long, bytes_done=count)
    schema = dict(own_schemas(definitions.node_cache_definition))["$.status.desired[items]"]
    assert list(Draft4Validator(schema).iter_errors(entry.to_document())) == []


def test_status_and_scale_are_subresources_with_paths_that_exist() -> None:
    (version,) = crd.definition()["spec"]["versions"]
    scale = version["subresources"]["scale"]
    for path in (
        scale["specReplicasPath"],
        scale["statusReplicasPath"],
        scale["labelSelectorPath"],
    ):
        schema = SCHEMA
        for step in path.strip(".").split("."):
            schema = schema["properties"][step]
    conditions = SCHEMA["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert "observedGeneration" in conditions["items"]["properties"]


def test_printer_columns_read_fields_that_exist() -> None:
    assert_columns_read_fields(crd.definition())


FLOORED = {"provisioning": {"capacity": {"onDemandMinimum": 1}}}


def planner_accepts(document: Json) -> bool:
    try:
        Workspace.model_validate(document)
    except ValidationError:
        return False
    return True


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries({}, optional=fields)


TEXT = st.sampled_from(["", "a", "x/y:z"])
NAMES = st.sampled_from(["a", "b", "A", "9a", "a" * 39, "a" * 40, "a" * 52, "a" * 53, ""])
COUNTS = st.integers(-1, 3)
LABELS = st.dictionaries(TEXT, TEXT, max_size=2)
AMOUNTS = st.dictionaries(TEXT, st.sampled_from(["4", "500m", "1e3", "-1", ""]), max_size=2)
PORTS = st.sampled_from([-1, 0, 8000, 65536])
SHARES = st.sampled_from([-0.1, 0, 0.5, 1.5, 1001])
SECONDS = st.sampled_from([-1, 0, 1, 3600, 86_400, 86_401])
QUERIES = st.lists(
    st.sampled_from(["{", "}", "{{version}}", "{{stable}}", "{{versoin}}", "a", "=", "\n"]), max_size=4
).map("".join)  # fmt: skip
# Each field of a spec, by the class that has it.
FIELDS: dict[type[BaseModel], dict[str, st.SearchStrategy[Any]]] = {
    Model: {
        "image": TEXT, "hub": TEXT, "s3": TEXT, "file": TEXT,
        "variant": st.sampled_from(["auto", "fp8", "int4", "-", ""]),
        "pullSecret": st.sampled_from(["a.b", "A", "a..b", "9"]),
        "build": optional(
            to=TEXT, secret=st.sampled_from(["a", "A"]),
            variants=st.lists(st.sampled_from(["auto", "int4", "x"]), max_size=2),
        ),
    },
    Runtime: {
        "engine": st.sampled_from(["vllm", "llama.cpp", "other"]),
        "image": TEXT,
        "args": st.lists(TEXT, max_size=2),
        "env": st.lists(
            st.fixed_dictionaries(
                {"name": NAMES},
                optional={"value": TEXT, "secret": optional(name=NAMES, key=TEXT)},
            ), max_size=3,
        ),
        "adapters": st.lists(st.fixed_dictionaries({"name": NAMES, "image": TEXT}), max_size=3),
        "port": PORTS,
        "servedModelName": TEXT,
        "contextLength": st.sampled_from([15, 16, 1 << 25]),
        "startupSeconds": SECONDS,
        "drainSeconds": SECONDS,
        "tracing": st.sampled_from([
            {"endpoint": "http://c:4317"}, {"endpoint": "c:4317"}, {"endpoint": ""}, {}, {"url": "http://c"},
        ]),
    },
    Resources: {
        "gpus": COUNTS, "nodes": st.sampled_from([0, 1, 2, 3, 33]),
        "fraction": st.sampled_from([0, 0.0, 0.5, 1.0]), "migProfile": TEXT,
        "vendor": st.sampled_from(["nvidia", "amd", "other"]),
        "gpu": TEXT, "cpu": st.sampled_from(["4", "500m", "-1"]),
        "gpuMemory": st.sampled_from(["24Gi", "24GiB", "", "1"]),
        "memory": st.sampled_from(["24Gi", "1.5Gi", "9" * 19]),
        "nodeSelector": LABELS,
        "provisioning": optional(
            by=st.sampled_from(["none", "karpenter", "kueue", "other"]), queue=NAMES,
            capacity=optional(
                spot=st.sampled_from(["preferred", "only", "always"]),
                onDemandMinimum=st.sampled_from([-1, 0, 1, 10_001]),
            ),
        ),
        "tolerations": st.lists(
            optional(
                key=TEXT, value=TEXT, operator=st.sampled_from(["Exists", "In"]),
                effect=st.sampled_from(["NoExecute", "No"]), tolerationSeconds=COUNTS,
            ), max_size=2
        ),
    },
    Scale: {
        "min": COUNTS, "max": COUNTS, "by": st.sampled_from(["builtin", "keda", "hpa", "cron"]),
        "prometheus": TEXT, "queueDepth": COUNTS, "upWindowSeconds": SECONDS, "downWindowSeconds": SECONDS,
    },
    Tenancy: {
        "quota": AMOUNTS, "limits": AMOUNTS, "networkPolicy": optional(allowFromNamespaces=LABELS),
    },
    Rollout: {
        "history": COUNTS, "restartedAt": TEXT, "keepSeconds": SECONDS,
        "strategy": st.sampled_from(["rolling", "canary", "blueGreen", "external", "other"]),
        "steps": st.lists(
            st.one_of(
                st.just({"pause": {}}), st.just({"weight": 10}), st.just({"weight": 50}),
                optional(weight=COUNTS, pause=optional(seconds=SECONDS), analysis=optional(seconds=SECONDS)),
            ), max_size=3,
        ),
        "analysis": optional(
            intervalSeconds=SECONDS, minRequests=COUNTS,
            maxRegression=optional(errorRate=SHARES, timeToFirstToken=SHARES, preemptions=SHARES, queueTime=SHARES),
            queries=st.lists(
                st.fixed_dictionaries(
                    {"name": st.sampled_from(["a", "b", "A"]), "query": QUERIES},
                    optional={"atMost": SHARES, "atLeast": SHARES},
                ), max_size=2,
            ),
        ),
    },
    Route: {
        "parentRefs": st.lists(
            optional(name=st.sampled_from(["a", "b", "A", ""]), namespace=st.sampled_from(["a", "A"]),
                     sectionName=st.sampled_from(["a", "b", ""])), max_size=3,
        ),
        "hostnames": st.lists(
            st.sampled_from(["a.b", "*.a.b", "A", "*", "a:80", "1.2.3.4", ""]), max_size=2
        ),
        "inferencePools": optional(endpointPicker=NAMES, newEndpointPicker=NAMES, port=PORTS),
    },
    PodTemplate: templates.FIELDS,
}  # fmt: skip


def parts_of(kind: type[BaseModel]) -> st.SearchStrategy[Json]:
    return optional(**FIELDS[kind])


SPECS = st.fixed_dictionaries(
    {"model": parts_of(Model)},
    optional={
        "runtime": parts_of(Runtime),
        "resources": parts_of(Resources),
        "replicas": COUNTS,
        "scale": parts_of(Scale),
        "placement": st.sampled_from(["any", "never"]),
        "tenancy": parts_of(Tenancy),
        "rollout": parts_of(Rollout),
        "route": parts_of(Route),
        "template": parts_of(PodTemplate),
    },
)


COMPARED = [{"weight": 10}, {"analysis": {"seconds": 60}}]


@pytest.mark.parametrize("kind", FIELDS)
def test_documents_with_every_field_are_compared(kind: type[BaseModel]) -> None:
    assert set(FIELDS[kind]) == {field.alias for field in kind.model_fields.values()}


@given(st.one_of(st.just("chat"), NAMES), SPECS)
def test_server_and_planner_accept_the_same_documents(name: str, spec: Json) -> None:
    document = samples.document(name) | {"spec": spec}
    assert server_accepts(SCHEMA, document) == planner_accepts(document)


@given(
    st.sampled_from([{}, {"runtime": {"port": 1}}, {"resources": {"nodes": 2}}]),
    templates.TEMPLATES | templates.ACCEPTED | st.just(templates.EVERY_FIELD),
)
def test_server_and_planner_accept_the_same_templates(rest: Json, template: Json) -> None:
    """By themselves: among other wrong fields few are told apart."""
    document = samples.document(**rest, template=template)
    assert server_accepts(SCHEMA, document) == planner_accepts(document)


A_VOLUME = {"name": "a", "configMap": {"name": "a"}}


def a_sidecar(name: str = "a", **more: Any) -> Json:
    return {"template": {"volumes": [A_VOLUME], "sidecars": [{"name": name, "image": "a", **more}]}}


def test_each_rule_refuses_what_it_is_for() -> None:
    refused = [
        {"resources": {"nodeSelector": {"": "a"}}},
        {"replicas": 1, "scale": {"max": 2}},
        {"scale": {"max": 2}, "rollout": {"strategy": "external"}},
        {"model": {"image": "a", "hub": "b"}},
        {"model": {"image": "a", "build": {"to": "b"}}},
        {"model": {"image": "oci:./out:v1"}},
        {"model": {"hub": "a", "build": {"to": "b", "variants": ["int8", "auto"]}}},
        {"runtime": {"adapters": [{"name": "a", "image": "docker:x"}]}},
        {"runtime": {"env": [{"name": "A"}]}},
        {"runtime": {"engine": "tgi", "tracing": {"endpoint": "http://c:4317"}}},
        {"resources": {"fraction": 0.5, "migProfile": "1g.10gb"}},
        {"resources": {"fraction": 0.5, "nodes": 2}},
        {"resources": {"gpus": 3, "nodes": 2}},
        {"resources": {"nodes": 2}, "runtime": {"engine": "sglang"}},
        {"resources": {"nodes": 2}, "rollout": {"strategy": "canary"}},
        {"runtime": {"engine": "sglang"}, "rollout": {"strategy": "canary"}},
        {"runtime": {"engine": "tgi"}, "rollout": {"strategy": "canary", "steps": COMPARED}},
        {"resources": {"fraction": 0.5, "gpus": 2}},
        {"resources": {"provisioning": {"by": "kueue"}}},
        {"resources": {"provisioning": {"queue": "a"}}},
        {"resources": {"provisioning": {"capacity": {"spot": "only", "onDemandMinimum": 1}}}},
        {"resources": FLOORED, "rollout": {"strategy": "external"}},
        {"resources": {**FLOORED, "nodes": 2}},
        {"resources": FLOORED, "scale": {"max": 2, "by": "hpa"}},
        {
            "scale": {"max": 2, "by": "hpa"},
            "rollout": {"strategy": "canary", "steps": [{"weight": 80}]},
        },
        {"scale": {"min": 3, "max": 2}},
        {"scale": {"min": 0, "max": 2, "by": "hpa"}},
        {"scale": {"max": 2, "by": "keda"}},
        {"route": {"parentRefs": [{"name": "a"}, {"name": "a", "sectionName": "b"}]}},
        {"rollout": {"strategy": "canary", "steps": [{"weight": 10}, {}]}},
        {"rollout": {"analysis": {"minRequests": 5}}},
        {
            "rollout": {
                "strategy": "canary",
                "analysis": {"queries": [{"name": "a", "query": "up"}]},
            }
        },
        {
            "rollout": {
                "strategy": "canary",
                "analysis": {
                    "queries": [{"name": "a", "query": "a{b='{{versoin}}'}", "atMost": 1}]
                },
            }
        },
        {"rollout": {"keepSeconds": 600}},
        {
            "rollout": {
                "strategy": "canary",
                "steps": [{"weight": 50}, {"pause": {}}, {"weight": 10}],
            }
        },
        {"rollout": {"steps": [{"pause": {}}]}},
        {"rollout": {"strategy": "blueGreen", "steps": [{"weight": 10}]}},
        {"rollout": {"strategy": "canary", "steps": [{"pause": {}}, {"weight": 10}]}},
        {"template": {"labels": {"-": "a"}}},
        {"template": {"annotations": {"weightyard.dev/role": "a"}}},
        {"template": {"priorityClassName": "system-cluster-critical"}},
        {"template": {"labels": {"sidecar.istio.io/inject": "true"}}},
        {"template": {"topologySpreadConstraints": [{"topologyKey": "a"}, {"topologyKey": "a"}]}},
        {
            "template": {
                "topologySpreadConstraints": [
                    {"topologyKey": "a", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 1}
                ]
            }
        },
        {"template": {"volumes": [{"name": "a"}]}},
        {"template": {"volumes": [{**A_VOLUME, "name": "shm"}]}},
        {"template": {"volumeMounts": [{"name": "a", "mountPath": "/a"}]}},
        {
            "template": {
                "volumes": [A_VOLUME],
                "volumeMounts": [{"name": "a", "mountPath": "/model"}],
            }
        },
        a_sidecar("server"),
        a_sidecar(env=[{"name": "A"}]),
        a_sidecar(ports=[{"name": "http", "containerPort": 1}]),
        a_sidecar(ports=[{"name": "a", "containerPort": 8000}]),
        a_sidecar(ports=[{"name": n, "containerPort": 1} for n in ("a", "b")]),
        a_sidecar(volumeMounts=[{"name": "a", "mountPath": "/dev/a"}]),
        {"rollout": {"analysis": {"probes": {"attached": True}}}},
        {"rollout": {"strategy": "canary", "analysis": {"probes": {"attached": False}}}},
    ]
    said = [list(broken_rules(SCHEMA, samples.document(**spec))) for spec in refused]
    assert all(len(messages) == 1 for messages in said), said
    messages = {message for each in said for message in each}
    assert messages == {message for rules in crd.RULES.values() for _, message in rules}


OUTSIDE = [
    "oci:./out", "oci:/etc:v1", "oci:out", "oci:../../etc/passwd", "oci:", "oci:///etc", "docker:mine:v1",
    "docker:/x", "docker:///x", "/etc/passwd", "./out", "../out", "~/out", ".",
]  # fmt: skip
INSIDE = [
    "llama", "registry.example/team/llama:v1", "localhost:5000/a@sha256:" + "a" * 64, "oci.example/a/b",
    "oci://registry.example/team/llama:v1", "docker://registry.example/team/llama", "[::1]:5000/a/b", "docker.io/a/b",
]  # fmt: skip


@pytest.mark.parametrize("image", OUTSIDE)
def test_what_lies_outside_of_registries_is_refused_in_a_cluster(image: str) -> None:
    adapters = {"adapters": [{"name": "a", "image": image}]}
    cached = definitions.cached_model_definition()["spec"]["versions"][0]["schema"]
    assert list(broken_rules(SCHEMA, samples.document(model={"image": image})))
    assert list(broken_rules(SCHEMA, samples.document(runtime=adapters)))
    assert list(broken_rules(cached["openAPIV3Schema"], {"spec": {"image": image}}))


@pytest.mark.parametrize("image", INSIDE)
def test_every_spelling_of_a_registrys_image_is_accepted(image: str) -> None:
    cached = definitions.cached_model_definition()["spec"]["versions"][0]["schema"]
    assert list(broken_rules(SCHEMA, samples.document(model={"image": image}))) == []
    assert list(broken_rules(cached["openAPIV3Schema"], {"spec": {"image": image}})) == []


def test_the_definition_reads_back_as_it_was_written() -> None:
    assert yaml.safe_load(CHART_FILE.read_text()) == crd.definition()
