"""`weightyard import`: what KAITO's documents become, what is said of the rest, and what hostile ones do."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidInput
from modelimage.source_uris import is_commit
from weightyard.cli import main
from weightyard.kaito.importer import Imported, import_documents
from weightyard.kaito.instances import INSTANCES
from weightyard.kaito.presets import PRESETS, read_catalogue
from workspace.document import parse_workspaces
from workspace.hardware import find_gpu

Json = dict[str, Any]

SERVED = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data:
  inference_config.yaml: |
    max_probe_steps: 6
    vllm:
      gpu_memory_utilization: 0.9
      max-model-len: 8192
      tensor-parallel-size: 2
      enable-chunked-prefill: false
---
apiVersion: kaito.sh/v1beta1
kind: Workspace
metadata:
  name: 3-questions
  namespace: team-a
  annotations: {kaito.sh/runtime: transformers, kaito.sh/enablelb: "true"}
resource:
  instanceType: Standard_NC48ads_A100_v4
  count: 2
  labelSelector: {matchLabels: {pool: questions}}
inference:
  preset: {name: Phi-4, presetOptions: {modelAccessSecret: hub-token}}
  config: settings
  adapters: [{source: {name: polite, image: registry.example/adapters/polite:v1}}]
"""
SCALED = """\
apiVersion: kaito.sh/v1alpha1
kind: InferenceSet
metadata:
  name: chat
  annotations:
    scaledobject.kaito.sh/auto-provision: "true"
    scaledobject.kaito.sh/metricName: vllm:num_requests_waiting
    scaledobject.kaito.sh/threshold: "10"
    scaledobject.kaito.sh/max-replicas: "6"
spec:
  replicas: 2
  labelSelector: {matchLabels: {pool: chat}}
  template:
    resource: {partition: {mode: mig, profile: mig-2g.24gb}}
    inference: {preset: {name: org/chat@main}}
"""
TUNING = """\
apiVersion: kaito.sh/v1beta1
kind: Workspace
metadata: {name: tuned}
tuning: {preset: {name: phi-4}, method: qlora}
"""


def imported(text: str, **given: Any) -> list[Imported]:
    return import_documents(list(yaml.safe_load_all(text)), presets=PRESETS, **given)


def test_a_preset_becomes_a_workspace_that_builds_its_model() -> None:
    (found,) = imported(SERVED, target="registry.example/team/")
    assert found.workspace == {
        "apiVersion": "weightyard.dev/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": "m-3-questions", "namespace": "team-a"},
        "spec": {
            "model": {
                "hub": PRESETS["phi-4"],
                "build": {"to": "registry.example/team/phi-4", "secret": "hub-token"},
            },
            "runtime": {
                "contextLength": 8192,
                "args": ["--gpu-memory-utilization", "0.9", "--no-enable-chunked-prefill"],
            },
            "resources": {
                "gpu": "A100-80GB",
                "gpus": 4,
                "nodes": 2,
                "nodeSelector": {"pool": "questions"},
            },
        },
    }
    said = " ".join(found.notes)
    for what in (
        "3-questions",
        "tensor-parallel-size 2",
        "adapters/polite:v1",
        "transformers",
        "spec.route",
    ):
        assert what in said


def test_a_set_that_scales_becomes_a_workspace_that_does() -> None:
    (found,) = imported(SCALED)
    assert found.workspace is not None
    spec = found.workspace["spec"]
    assert spec["scale"] == {"min": 2, "max": 6, "queueDepth": 10}
    assert spec["resources"] == {
        "migProfile": "2g.24gb", "gpus": 1, "nodeSelector": {"pool": "chat"},
    }  # fmt: skip
    assert spec["model"] == {"hub": "org/chat@main"}
    assert any("--to REGISTRY/PATH" in note for note in found.notes)


def test_what_has_no_equivalent_says_so() -> None:
    template = TUNING.replace("tuning:", "inference: {template: {spec: {}}}\nother:")
    engine = TUNING.replace("Workspace", "RAGEngine")
    for text, why in ((TUNING, "tunes"), (template, "pod template"), (engine, "retrieval")):
        (found,) = imported(text)
        assert found.workspace is None
        assert why in found.notes[0]


def test_an_unknown_preset_names_the_known_ones_and_the_way_out() -> None:
    text = SCALED.replace("org/chat@main", "ours")
    with pytest.raises(InvalidInput, match="no preset 'ours' is known") as caught:
        imported(text)
    assert "--catalogue" in str(caught.value.hint)
    presets = read_catalogue("ours: org/ours@main\n", name="ours.yaml")
    (found,) = import_documents(list(yaml.safe_load_all(text)), presets=presets)
    assert found.workspace is not None
    assert found.workspace["spec"]["model"]["hub"] == "org/ours@main"


@pytest.mark.parametrize(
    "text", ["", "- a\n", "a: 1\n", "a: b\n", "a: {b: c}\n", "a: org/b\n---\nb: org/c\n"]
)
def test_a_catalogue_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected presets"):
        read_catalogue(text, name="ours.yaml")


def test_every_instance_has_a_gpu_of_the_table_and_every_preset_a_commit() -> None:
    for name, instance in INSTANCES.items():
        known = find_gpu(instance.gpu)
        assert known is not None, name
        assert known.name == instance.gpu
    for preset, repository in PRESETS.items():
        organisation, _, rest = repository.partition("/")
        assert organisation, preset
        assert is_commit(rest.partition("@")[2]), preset


PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["phi-4", "true"]),
    lambda each: st.lists(each, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["metadata", "name", "labels", "annotations", "spec", "template", "resource", "inference", "preset",
             "config", "adapters", "source", "replicas", "count", "instanceType", "labelSelector", "matchLabels",
             "partition", "presetOptions", "image", "data", "scaledobject.kaito.sh/auto-provision"]
        ),
        each,
        max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip


@given(PARTS, st.sampled_from(["Workspace", "InferenceSet", "Other"]))
def test_whatever_a_document_has_it_is_a_workspace_or_a_clear_error(part: Any, kind: str) -> None:
    document = {
        **(part if isinstance(part, dict) else {}),
        "apiVersion": "kaito.sh/v1beta1",
        "kind": kind,
    }
    try:
        found = import_documents([document], presets=PRESETS)
    except InvalidInput:
        return
    for each in found:
        if each.workspace is not None:
            parse_workspaces(json.dumps(each.workspace), name="it")


def test_the_file_can_be_used_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, ours = tmp_path / "kaito.yaml", tmp_path / "ours.yaml"
    file.write_text(f"{SERVED}---\n{SCALED}---\n{TUNING}")
    assert main(["import", str(file), "--to", "registry.example/team"]) == 0
    said = capsys.readouterr()
    assert "left out KAITO's Workspace tuned" in said.err
    assert [each.name for each in parse_workspaces(said.out, name="it")] == [
        "m-3-questions",
        "chat",
    ]
    assert "# - It ran on transformers" in said.out
    ours.write_text(said.out)
    assert main(["validate", str(ours)]) == 0
    capsys.readouterr()
    assert main(["import", "--json", str(file)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["workspace"] is None for each in document] == [False, False, True]


def test_a_list_and_stdin_are_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(yaml.safe_load_all(SERVED))
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"kind": "List", "items": items})))
    assert main(["import", "-"]) == 0
    assert "contextLength: 8192" in capsys.readouterr().out


def test_a_file_without_any_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "none.yaml"
    file.write_text("kind: Deployment\n")
    assert main(["import", str(file)]) == 2
    assert "kubectl get workspaces.kaito.sh" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "absent.yaml")]) == 3


def test_aliases_without_end_become_no_text_without_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "huge.yaml"
    layers = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9))
    file.write_text(
        f"l0: &l0 [x]\n{layers}apiVersion: kaito.sh/v1beta1\nkind: Workspace\n"
        "metadata: {name: a, labels: {a: *l8}}\nresource: {count: *l8, labelSelector: {matchLabels: {a: *l8}}}\n"
        "inference: {preset: {name: phi-4, presetOptions: {image: *l8}}, config: *l8, adapters: *l8}\n"
    )
    assert main(["import", str(file)]) == 0
    assert len(capsys.readouterr().out) < 10_000
