"""`weightyard validate`: what a cluster would refuse is refused before, and others' documents are left alone."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidInput
from tests.weightyard.tasks.pages import REPOSITORY
from weightyard.checked_documents import check_documents
from weightyard.cli import main

WORKSPACE = """\
apiVersion: weightyard.dev/v1alpha1
kind: Workspace
metadata: {name: chat}
spec:
  model: {image: registry.example/team/chat:v1}
"""
CACHED_MODEL = """\
apiVersion: weightyard.dev/v1alpha1
kind: CachedModel
metadata: {name: warm}
spec: {image: registry.example/team/warm:v1}
"""
SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {anything: 1}\n"
CANARY = """\
  scale: {min: 1, max: 4}
  rollout:
    strategy: canary
    steps: [{weight: 10}, {analysis: {seconds: 300}}, {pause: {seconds: 60}}, {pause: {}}]
"""


def test_what_a_document_asks_for_is_told() -> None:
    text = f"{SERVICE}---\n{WORKSPACE}{CANARY}---\n{CACHED_MODEL}---\n{WORKSPACE}  replicas: 0\n"
    text += f"---\n{WORKSPACE}  template: {{runtimeClassName: nvidia, labels: {{team: a}}}}\n"
    found = check_documents(text, "all.yaml")
    assert [(each.kind, each.name, each.does) for each in found] == [
        (
            "Workspace", "chat",
            "1 to 4 servers by builtin; canary: 10 %, analysis of 5 min 0 s, pause of 1 min 0 s, pause until resumed",
        ),
        ("CachedModel", "warm", "holds registry.example/team/warm:v1"),
        ("Workspace", "chat", "0 servers; rolling"),
        ("Workspace", "chat", "1 server; rolling; pods with labels, runtimeClassName"),
    ]  # fmt: skip
    assert [each.where for each in found] == [f"all.yaml:{n}" for n in (6, 16, 21, 28)]
    assert not any(each.problems for each in found)


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        (
            "{strategy: blueGreen, keepSeconds: 90}",
            "1 server; blueGreen; the old version stays for 1 min 30 s",
        ),
        (
            "{strategy: canary, steps: [{weight: 50}], analysis: {probes: {configMap: {name: questions}}}}",
            "1 server; canary: 50 %; probes of ConfigMap questions first",
        ),
        (
            "{strategy: canary, steps: [{weight: 50}], analysis: {probes: {attached: true}}}",
            "1 server; canary: 50 %; probes of the image first",
        ),
    ],
)
def test_what_a_rollout_asks_for_is_told(rollout: str, told: str) -> None:
    (found,) = check_documents(f"{WORKSPACE}  rollout: {rollout}\n", "w.yaml")
    assert (found.problems, found.does) == ((), told)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("canry", "canary"), ("bluegreen", "blueGreen"), ("x", None), ("x" * 100_000, None)],
)
def test_a_misspelt_choice_is_told_with_the_likely_one(given: str, meant: str | None) -> None:
    text = f"{WORKSPACE}  rollout: {{strategy: {given}}}\n"
    ((problem,),) = [each.problems for each in check_documents(text, "w.yaml")]
    choices = "expected one of rolling, canary, blueGreen, external"
    assert problem.endswith(f"{choices}; did you mean {meant!r}?" if meant else choices)


def test_a_problem_of_one_hides_none_of_another() -> None:
    wrong = CACHED_MODEL.replace("image", "imge")
    text = f"{WORKSPACE}  replicas: -1\n  placment: any\n---\n{CACHED_MODEL}---\n{wrong}"
    problems = [each.problems for each in check_documents(text, "all.yaml")]
    assert [len(each) for each in problems] == [2, 0, 2]
    assert problems[0][0] == "all.yaml:6: spec.replicas: expected at least 0"
    assert "did you mean 'image'?" in " ".join(problems[2])


def test_items_of_a_list_are_documents() -> None:
    items = [yaml.safe_load(each) for each in (WORKSPACE, SERVICE, CACHED_MODEL)]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    assert [each.kind for each in check_documents(text, "list.json")] == [
        "Workspace",
        "CachedModel",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: weightyard.dev/v1alpha1\nkind: Workspaces\n",
        "kind: Workspace\n",
        "apiVersion: weightyard.dev/v1alpha1\nkind: Workspace\nitems: []\n",
        "kind: List\nitems: [{kind: List, items: [{kind: Workspace}]}]\n",
        "a: &a {kind: Workspace}\n<<: *a\n",
        "kind: Workspace\nmetadata: {uid: u}\n",
    ],
)
def test_ours_that_cannot_be_read_are_not_taken_for_others(text: str) -> None:
    (found,) = check_documents(text, "w.yaml")
    assert found.problems


@given(
    st.one_of(
        st.text(max_size=300),
        st.lists(
            st.sampled_from(
                [
                    "kind: Workspace", "apiVersion: weightyard.dev/v1", "metadata: 1", "metadata: {name: [a]}",
                    "items: [1, {kind: CachedModel}]", "spec: {}", "? [a]\n: b", "---", "&a [*a]", "kind: [x]",
                    "<<: {a: b}",
                ]
            ),
            max_size=6,
        ).map("\n".join),
    )
)  # fmt: skip
def test_any_text_is_checked_or_refused(text: str) -> None:
    try:
        found = check_documents(text, "w.yaml")
    except InvalidInput:
        return
    assert all(each.problems or each.does for each in found)


@pytest.mark.parametrize("group", ["app.terraform.io/v1alpha2", "kaito.sh/v1beta1"])
def test_workspaces_of_other_projects_are_theirs(group: str) -> None:
    assert check_documents(f"apiVersion: {group}\nkind: Workspace\nresource: 1\n", "w.yaml") == []


@pytest.mark.parametrize("image", ["HTTP://!!", "a b", "hf://org/name"])
def test_images_that_none_can_have_are_refused(image: str) -> None:
    text = WORKSPACE.replace("registry.example/team/chat:v1", f"'{image}'")
    more = CACHED_MODEL.replace("registry.example/team/warm:v1", f"'{image}'")
    found = check_documents(f"{text}---\n{more}", "w.yaml")
    assert [len(each.problems) for each in found] == [1, 1]


def test_objects_as_a_server_has_them_are_valid() -> None:
    document = yaml.safe_load(WORKSPACE)
    document["metadata"] |= {
        "uid": "u",
        "generation": 3,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    document["status"] = {"conditions": []}
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [document]})
    assert [each.problems for each in check_documents(text, "stdin")] == [()]


def test_what_a_repository_has_beside_hides_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-template.yaml").write_text("{{- if .Values.on }}\nkind: Workspace\n")
    (tmp_path / "b-package.json").write_text('{\n\t"name": "x"\n}')
    (tmp_path / "c-large.yaml").write_text("#" * (2 << 20))
    (tmp_path / "d-broken.yaml").write_text(WORKSPACE + "  a: b: c\n")
    (tmp_path / "e-wrong.yaml").write_text(WORKSPACE + "  replicas: -1\n")
    (tmp_path / "f-good.yaml").write_text(CACHED_MODEL)
    os.mkfifo(tmp_path / "pipe.yaml")
    assert main(["validate", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "f-good.yaml" in told.out
    assert "d-broken.yaml:6: not valid YAML" in told.err
    assert "e-wrong.yaml:6: spec.replicas" in told.err
    assert not any(name in told.err for name in ("a-template", "b-package", "c-large", "pipe.yaml"))


@pytest.mark.parametrize(
    "command", [("validate",), ("up", "--dry-run"), ("render", "--to", "compose")]
)
def test_a_pipe_or_a_device_is_no_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    os.mkfifo(tmp_path / "w.yaml")
    for path in (str(tmp_path / "w.yaml"), "/dev/zero"):
        assert main([*command, path]) != 0
        assert "bug in weightyard" not in capsys.readouterr().err


def test_examples_and_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(REPOSITORY / "examples"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["kind"] for each in found} == {"Workspace", "CachedModel"}
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "bad.yml").write_text(f"{WORKSPACE}  replicas: -1\n")
    (tmp_path / "good.yaml").write_text(CACHED_MODEL)
    (tmp_path / "notes.txt").write_text("kind: Workspace\n")
    assert main(["validate", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "good.yaml:1" in told.out
    assert f"error: {tmp_path}/deep/bad.yml:6: spec.replicas: expected at least 0" in told.err
    assert "notes.txt" not in told.out + told.err


def test_what_is_not_there_or_nothing_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["validate", str(tmp_path / "none.yaml")]) == 3
    assert main(["validate", "a" * 5000]) == 2
    monkeypatch.setattr("sys.stdin", None)
    assert main(["validate", "-"]) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(SERVICE))
    assert main(["validate", "-"]) == 0
    assert "no Workspace or CachedModel was found" in capsys.readouterr().out
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert main(["validate", str(tmp_path / "bytes.yaml")]) == 2
    (tmp_path / "large.yaml").write_text("#" * (2 << 20))
    assert main(["validate", str(tmp_path / "large.yaml")]) == 2
