"""`weightyard render` on a real image: built, resolved, pinned, written for every target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.synthetic import synthetic_checkpoint
from tests.workspace import openapi
from weightyard.cli import main
from weightyard.commands import render
from workspace.hardware import Hardware

DOCUMENT = """\
apiVersion: weightyard.dev/v1alpha1
kind: Workspace
metadata: {{name: tiny, namespace: team-a}}
spec:
  model: {{image: "oci:{image}", variant: {variant}}}
  resources: {{gpu: {gpu}}}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A layout with a small model in bf16 and int8."""
    root = tmp_path_factory.mktemp("image")
    checkpoint = synthetic_checkpoint(root / "model", total_bytes=4_000_000)
    layout = f"{root / 'layout'}:v1"
    assert main(["-q", "build", str(checkpoint), "--to", f"oci:{layout}", "--variant", "int8"]) == 0
    return layout


@pytest.fixture
def file(tmp_path: Path, image: str) -> Path:
    return write(tmp_path, image)


def write(folder: Path, image: str, *, variant: str = "auto", gpu: str = "L4") -> Path:
    path = folder / "workspace.yaml"
    path.write_text(DOCUMENT.format(image=image, variant=variant, gpu=gpu))
    return path


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["render", *words]) == 0
    return capsys.readouterr().out


def test_kubernetes_objects_are_yaml_that_a_server_accepts(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = list(yaml.safe_load_all(output(capsys, "-f", str(file), "--to", "kubernetes")))
    assert [problem for each in objects for problem in openapi.problems(each, openapi.OLDEST)] == []
    volumes = str(next(each for each in objects if each["kind"] == "Deployment"))
    assert "@sha256:" in volumes
    assert "'variant': 'bf16'" in volumes


@pytest.mark.parametrize("target", ["compose", "llm-d", "llm-d-pool", "up"])
def test_every_other_target_is_one_document(
    file: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    text = output(capsys, "-f", str(file), "--to", target)
    assert yaml.safe_load(text) == json.loads(
        output(capsys, "--json", "-f", str(file), "--to", target)
    )


def test_the_variant_is_the_one_asked_for(
    tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, image, variant="int8")
    found = yaml.safe_load(output(capsys, "-f", str(path), "--to", "up"))
    assert found["model"]["variant"] == "int8"


def test_the_command_here_is_for_this_machine_if_the_spec_names_no_gpu(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Hardware(memory_bytes=8 << 30)
    monkeypatch.setattr(render, "local_hardware", lambda *, cpu_only: here)
    file.write_text(file.read_text().replace("  resources: {gpu: L4}\n", ""))
    found = yaml.safe_load(output(capsys, "-f", str(file), "--to", "up"))
    assert "VLLM_CPU_KVCACHE_SPACE" in found["environment"]
    assert main(["render", "-f", str(file), "--to", "compose"]) == 2
    assert "names no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "gpu", "code", "says"),
    [
        ("int4", "L4", 8, "it has: bf16, int8"),
        ("auto", "X9", 2, "gpuMemory"),
        ("int8", "B200", 10, "INT8 kernels"),
    ],
)
def test_what_cannot_be_is_said_with_its_exit_code(
    tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str], variant: str, gpu: str, code: int, says: str
) -> None:  # fmt: skip
    path = write(tmp_path, image, variant=variant, gpu=gpu)
    assert main(["render", "-f", str(path), "--to", "compose"]) == code
    assert says in capsys.readouterr().err


def test_a_hub_model_has_to_become_an_image_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hub.yaml"
    text = DOCUMENT.format(image="", variant="auto", gpu="L4").replace(
        'image: "oci:"', "hub: org/model"
    )
    path.write_text(text)
    assert main(["render", "-f", str(path), "--to", "kubernetes"]) == 2
    assert "weightyard build hf://org/model" in capsys.readouterr().err
