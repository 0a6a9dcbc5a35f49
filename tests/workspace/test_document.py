"""Documents in, Workspaces out: every complaint has the file, the line, the field, and a guess."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cache_agent.api.kube_objects import parse_quantity
from modelimage.bounds import MOST_DOCUMENT_BYTES
from modelimage.errors import InvalidInput
from tests.workspace import templates
from tests.workspace.samples import document
from workspace.document import parse_workspace, parse_workspaces
from workspace.provisioning_spec import Capacity, Provisioner, Provisioning, Spot
from workspace.rollout_spec import (
    Analysis,
    AnalysisStep,
    ConfigMapKey,
    MaxRegression,
    Pause,
    ProbesSource,
    QueryCondition,
    Rollout,
    RolloutStep,
    Strategy,
)
from workspace.runtime_spec import Adapter, Engine, EnvVar, Runtime
from workspace.scale_spec import Autoscaler, Scale
from workspace.schema import Model, Placement, Resources, Spec, Vendor, Workspace
from workspace.template_spec import PodTemplate
from workspace.tenancy import NetworkPolicy, Tenancy
from workspace.toleration import Toleration
from workspace.trace_context import Tracing

GOOD = """\
apiVersion: weightyard.dev/v1alpha1
kind: Workspace
metadata:
  name: chat
spec:
  model:
    image: registry.example/team/model:v1
"""


def complaint(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse_workspaces(text, name="w.yaml")
    assert caught.value.hint
    return str(caught.value)


def test_defaults() -> None:
    found = parse_workspace(GOOD, name="w.yaml")
    assert found.name == "chat"
    assert found.spec.model.variant == "auto"
    assert found.spec.runtime.engine is Engine.VLLM
    assert found.spec.runtime.port == 8000
    assert found.spec.placement is Placement.PREFERRED
    assert found.to_document()["spec"] == {"model": {"image": "registry.example/team/model:v1"}}


@pytest.mark.parametrize(
    ("more", "line", "says"),
    [
        ("    varient: int8\n", 8, "unknown field spec.model.varient; did you mean 'variant'?"),
        ("    variant: INT4\n", 8, "spec.model.variant: "),
        ("    build: {to: a, variants: [int3]}\n", 8,
         "spec.model.build.variants[0]: expected one of bf16, int8-w8a16, int8, int4"),
        (
            "    zzz: 1\n",
            8,
            "unknown field spec.model.zzz; known here: build, file, hub, image, pullSecret, s3, variant",
        ),
        ("  contextLength: 1\n", 8,
         "unknown field spec.contextLength; did you mean `spec: {runtime: {contextLength: …}}`?"),
        ("  runtime.port: 1\n", 8,
         "unknown field spec.runtime.port; did you mean `spec: {runtime: {port: …}}`?"),
        ("  runtime: 1\n", 8, "spec.runtime: expected a mapping with the fields adapters, args, "),
        ("  replicas: -1\n", 8, "spec.replicas: expected at least 0"),
        ("  rollout: {strategy: canary, steps: [{weight: 100}]}\n", 8,
         "spec.rollout.steps[0].weight: expected at most 99"),
        ("  rollout: {strategy: blueGreen, keepSeconds: 5m}\n", 8,
         "spec.rollout.keepSeconds: expected a whole number of seconds, such as 300"),
        ("  replicas: yes\n", 8, "spec.replicas: expected a whole number"),
        ("  replicas: '2'\n", 8, "spec.replicas: expected a whole number"),
        ("  scale: {min: 3, max: 2}\n", 8, "spec.scale: min is 3, above max, which is 2"),
        ("  scale: {}\n", 8, "spec.scale.max is missing"),
        ("  replicas: 1\n  scale: {max: 2}\n", 5, "spec: give replicas or scale, not both"),
        ("    hub: org/name\n", 6, "spec.model: give exactly one of image, hub and s3; found image and hub"),
        ("  runtime:\n    env:\n      - {name: A, value: b}\n      - name: C\n", 11,
         "spec.runtime.env[1]: give exactly one of value and secret"),
        ("  runtime:\n    env:\n      - {name: A, value: b}\n      - {name: A, value: c}\n", 8,
         "spec.runtime: env has 'A' twice"),
        ("  runtime: {args: [--a, 3]}\n", 8, "spec.runtime.args[1]: expected text"),
        ("  resources: {gpuMemory: 24GB}\n", 8, "spec.resources.gpuMemory: expected a size such as 24Gi"),
        ("  resources: {fraction: 0.5, migProfile: 1g.10gb}\n", 8,
         "spec.resources: give fraction or migProfile, not both"),
        ("  resources: {fraction: 0.5, gpus: 2}\n", 8, "spec.resources: a shared GPU means gpus: 1"),
        ("  resources: {provisioning: {by: kueue}}\n", 8, "spec.resources.provisioning: by: kueue needs queue"),
        ("  resources: {provisioning: {queue: a}}\n", 8, "spec.resources.provisioning: queue is for by: kueue"),
        ("  rollout:\n    strategy: canary\n    steps:\n      - {weight: 5}\n      - pause:\n", 12,
         "spec.rollout.steps[1].pause: write `pause: {}`"),
        ("  resources: {gpus: 8, nodes: 3}\n", 8,
         "spec.resources: gpus are those of all nodes together: make it a multiple of nodes"),
    ],
)  # fmt: skip
def test_complaints(more: str, line: int, says: str) -> None:
    said = complaint(GOOD + more)
    assert f"w.yaml:{line}: {says}" in said


@pytest.mark.parametrize(
    ("more", "topic"),
    [
        (
            "  rollout: {strategy: canary, steps: [{weight: 100}, {analysis: {seconds: 5m}}]}\n",
            "rollouts",
        ),
        ("  resources: {provisioning: {by: somebody}}\n", "nodes"),
        ("  replicas: -1\n  rollout: {strategy: fast}\n", "workspace"),
    ],
)
def test_hints_name_the_topic_that_shows_the_fields(more: str, topic: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_workspace(GOOD + more, name="w.yaml")
    assert f"`weightyard help {topic}` shows the fields" in str(caught.value.hint)


def test_all_complaints_at_once() -> None:
    said = complaint(GOOD + "  replicas: -1\n  placment: any\n")
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "w.yaml holds no document"),
        ("- a\n", "w.yaml:1: a Workspace is a mapping, not list"),
        ("a: [\n", "not valid YAML"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
        (GOOD.replace("kind: Workspace", "kind: Pod"), "w.yaml:2: kind: input should be 'Workspace'"),
        (GOOD.replace("name: chat", "name: Chat_1"), "w.yaml:4: metadata.name:"),
        (GOOD.replace("v1alpha1", "v9"), "w.yaml:1: apiVersion:"),
        (GOOD + "  model: {image: other}\n", "w.yaml:8: the key 'model' occurs twice"),
        ("a: 2026-99-99\n", "w.yaml: not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("#" * (MOST_DOCUMENT_BYTES + 1), "more than 1 MiB"),
    ],
)  # fmt: skip
def test_documents_that_are_none(text: str, says: str) -> None:
    assert says in complaint(text)


def test_alias_bomb_is_cheap() -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    text = "a0: &a0 [x]\n" + "\n".join(levels) + "\n" + GOOD
    assert "unknown field a0" in complaint(text)


def test_several_documents() -> None:
    text = GOOD + "---\n" + GOOD.replace("chat", "code") + "---\n"
    assert [each.name for each in parse_workspaces(text, name="w.yaml")] == ["chat", "code"]
    assert parse_workspace(text, name="w.yaml", only="code").name == "code"
    with pytest.raises(InvalidInput, match="several workspaces: chat, code"):
        parse_workspace(text, name="w.yaml")
    with pytest.raises(InvalidInput, match="no workspace 'x'; it holds: chat, code"):
        parse_workspace(text, name="w.yaml", only="x")


def outcome(text: str) -> str:
    """What the parser says of a text: its complaint, or the file's name when it has none."""
    try:
        parse_workspaces(text, name="w.yaml")
    except InvalidInput as error:
        return str(error)
    return "w.yaml"


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Nothing but InvalidInput leaves the parser."""
    assert "w.yaml" in outcome(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)

PARTS = (
    "model", "runtime", "resources", "replicas", "scale", "placement", "tenancy", "rollout", "template",
)  # fmt: skip


@given(part=st.sampled_from(PARTS), value=json_values)
def test_any_part_is_parsed_or_refused(part: str, value: object) -> None:
    assert "w.yaml" in outcome(yaml.safe_dump(document(**{part: value})))


names = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
env = st.builds(
    EnvVar, name=st.from_regex(r"[A-Z_]{1,9}", fullmatch=True), value=texts, secret=st.none()
)
labels = st.dictionaries(names, names, max_size=2)
amounts = st.dictionaries(names, st.sampled_from(["4", "500m", "16Gi"]), max_size=2)
# Each field of a class; what excludes another field is absent.
pauses = (st.none() | st.integers(1, 600)).map(
    lambda seconds: RolloutStep(pause=Pause(seconds=seconds))
)
later_steps = st.one_of(
    pauses,
    st.just(RolloutStep(weight=50)),
    st.integers(1, 600).map(lambda seconds: RolloutStep(analysis=AnalysisStep(seconds=seconds))),
)
BUILT: dict[type[BaseModel], dict[str, st.SearchStrategy[Any]]] = {
    Runtime: {
        "engine": st.just(Engine.VLLM),
        "image": st.none() | texts,
        "args": st.lists(texts, max_size=4).map(tuple),
        "env": st.lists(env, max_size=3, unique_by=lambda each: each.name).map(tuple),
        "adapters": st.lists(
            st.builds(Adapter, name=names, image=texts), max_size=2, unique_by=lambda each: each.name
        ).map(tuple),
        "port": st.integers(0, 65535),
        "served_model_name": st.none() | texts,
        "context_length": st.none() | st.integers(16, 1 << 20),
        "startup_seconds": st.none() | st.integers(1, 86_400),
        "drain_seconds": st.integers(0, 3600),
        "tracing": st.none() | st.just(Tracing(endpoint="http://collector:4317")),
    },
    Resources: {
        "gpus": st.none() | st.integers(0, 8),
        # The rollout below excludes more.
        "nodes": st.just(1),
        "vendor": st.sampled_from(Vendor),
        "gpu": st.none() | texts,
        "gpu_memory": st.none() | st.sampled_from(["24Gi", "80G", "500Mi"]),
        "fraction": st.none(),
        "mig_profile": st.none(),
        "cpu": st.none() | st.sampled_from(["4", "500m"]),
        "memory": st.none() | st.just("16Gi"),
        "node_selector": labels,
        "tolerations": st.lists(
            st.builds(Toleration, key=names, value=st.none(), toleration_seconds=st.none()), max_size=2
        ).map(tuple),
        "provisioning": st.none()
        | st.just(Provisioning(by=Provisioner.KUEUE, queue="gpus"))
        | st.builds(
            Provisioning, by=st.sampled_from([Provisioner.NONE, Provisioner.KARPENTER]), queue=st.none(),
            capacity=st.none() | st.builds(Capacity, spot=st.sampled_from(Spot)),
        ),
    },
    Model: {
        "image": texts,
        "hub": st.none(),
        "s3": st.none(),
        "build": st.none(),
        "variant": st.sampled_from(["auto", "bf16", "int8-w8a16", "awq", "gptq-int4", "fp8"]),
        "file": st.none() | texts,
        "pull_secret": st.none() | names,
    },
    Scale: {
        "min": st.integers(0, 3),
        "max": st.integers(3, 9),
        "queue_depth": st.integers(1, 9),
        "up_window_seconds": st.integers(0, 3600),
        "down_window_seconds": st.integers(0, 3600),
        "by": st.just(Autoscaler.BUILTIN),
        "prometheus": st.none() | texts,
    },
    Tenancy: {
        "quota": amounts,
        "limits": amounts,
        "network_policy": st.none() | st.builds(NetworkPolicy, allow_from_namespaces=labels),
    },
    Rollout: {
        "history": st.integers(1, 100), "restarted_at": st.none() | texts,
        "strategy": st.just(Strategy.BLUE_GREEN), "keep_seconds": st.integers(0, 86_400),
        "steps": st.lists(pauses, max_size=4).map(tuple),
        "analysis": st.builds(
            Analysis, interval_seconds=st.integers(2, 3600), min_requests=st.integers(1, 100),
            max_regression=st.builds(MaxRegression, error_rate=st.floats(0, 1), queue_time=st.floats(0, 100)),
            probes=st.none() | st.just(ProbesSource(attached=True))
            | st.just(ProbesSource(config_map=ConfigMapKey(name="answers", key="a.yaml"))),
            queries=st.sampled_from([
                (), (QueryCondition(name="a", query="up", at_most=0.5),),
                (QueryCondition(name="a", query="up", at_most=1), QueryCondition(name="b", query="up", at_least=0)),
            ]),
        ),
    },
}  # fmt: skip


CANARY = {
    **{name: each for name, each in BUILT[Rollout].items() if name != "keep_seconds"},
    "strategy": st.just(Strategy.CANARY),
    "steps": st.just(()) | st.lists(later_steps, max_size=4).map(lambda rest: (RolloutStep(weight=5), *rest)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BUILT)
def test_documents_with_every_field_are_tried(kind: type[BaseModel]) -> None:
    assert set(BUILT[kind]) == set(kind.model_fields)


specs = st.builds(
    Spec,
    model=st.builds(Model, **BUILT[Model]),
    runtime=st.builds(Runtime, **BUILT[Runtime]),
    resources=st.builds(Resources, **BUILT[Resources]),
    replicas=st.none(),
    scale=st.none() | st.builds(Scale, **BUILT[Scale]),
    placement=st.sampled_from(Placement),
    tenancy=st.builds(Tenancy, **BUILT[Tenancy]),
    rollout=st.builds(Rollout, **BUILT[Rollout]) | st.builds(Rollout, **CANARY),
    template=(templates.ACCEPTED | st.just(templates.EVERY_FIELD)).map(PodTemplate.model_validate),
)


@given(specs)
def test_round_trip(spec: Spec) -> None:
    """`Workspace.model_validate(w.to_document()) == w`, through JSON and through YAML."""
    found = Workspace.model_validate(document() | {"spec": {"model": {"image": "x"}}})
    whole = found.model_copy(update={"spec": spec})
    assert Workspace.model_validate(json.loads(json.dumps(whole.to_document()))) == whole
    assert parse_workspace(yaml.safe_dump(whole.to_document()), name="w.yaml") == whole


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("24Gi", 24 << 30),
        ("500Mi", 500 << 20),
        ("80G", 80 * 10**9),
        ("1k", 1000),
        ("7", 7),
    ],
)
def test_quantities(text: str, size: int) -> None:
    assert parse_quantity(text) == size


@pytest.mark.parametrize("text", ["", "Gi", "1.5Gi", "-1Gi", "24GB", "24 Gi", "24gi"])
def test_not_a_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_quantity(text)
