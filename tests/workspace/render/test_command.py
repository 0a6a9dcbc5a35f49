"""`weightyard render` on a real image: built, resolved, pinned, written for every target."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.servers.hub import Hub
from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint
from tests.workspace import openapi
from weightyard.cli import main
from weightyard.commands import render
from workspace.hardware import Hardware

pytestmark = pytest.mark.servers

DOCUMENT = """\
apiVersion: weightyard.dev/v1alpha1
kind: Workspace
metadata: {{name: tiny, namespace: team-a}}
spec:
  model: {{image: "{image}", variant: {variant}}}
  resources: {{gpu: {gpu}}}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, registry: DockerRegistry) -> str:
    """A small model in bf16 and int8, in a registry."""
    root = tmp_path_factory.mktemp("image")
    checkpoint = synthetic_checkpoint(root / "model", total_bytes=4_000_000)
    pushed = f"{registry.host}/render/tiny:v1"
    assert main(["-q", "build", str(checkpoint), "--to", pushed, "--variant", "int8"]) == 0
    return pushed


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


@pytest.mark.parametrize("target", ["compose", "llm-d", "llm-d-pool", "karpenter", "up"])
def test_every_other_target_is_one_document(
    file: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    if target == "karpenter":
        give(file, BY_KARPENTER)
    words = ["-f", str(file), "--to", target]
    words += ["--node-class", "EC2NodeClass/gpu"] if target == "karpenter" else []
    assert yaml.safe_load(output(capsys, *words)) == json.loads(output(capsys, "--json", *words))


def test_a_pool_without_its_node_class_is_refused_at_once(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", "-f", str(file), "--to", "karpenter"]) == 2
    assert "--node-class KIND/NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "kubernetes", "--node-class", "EC2NodeClass/gpu"], "--node-class is for --to karpenter"),
        (["--to", "compose", "--scrape-from", "monitoring"], "--scrape-from is for --to kubernetes"),
        (["--to", "karpenter", "--node-class", "EC2NodeClass/gpu"], "provisioning.by to karpenter"),
    ],
)  # fmt: skip
def test_what_would_change_nothing_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["render", "-f", str(file), *words]) == 2
    assert says in re.sub(r"\s+", " ", capsys.readouterr().err)


def give(file: Path, more: str) -> None:
    """Replaces the document's resources by fields of a spec."""
    file.write_text(file.read_text().replace("  resources: {gpu: L4}\n", more))


TEMPLATED = """\
  resources: {gpu: L4}
  template:
    runtimeClassName: nvidia
    labels: {team: a}
    volumes: [{name: prompts, configMap: {name: prompts}}]
"""
BY_KARPENTER = "  resources: {gpu: L4, provisioning: {by: karpenter}}\n"


@pytest.mark.parametrize(
    ("target", "more", "says", "silent"),
    [
        ("kubernetes", BY_KARPENTER + "  scale: {min: 2, max: 4}\n  rollout: {strategy: canary}\n",
         ["Karpenter with a NodePool", "No effect without the controller: rollout, scale.", "Replicas: 2"], "Kueue"),
        ("kubernetes", "  resources: {gpu: L4, provisioning: {by: kueue, queue: gpus, warmSpares: 1}}\n"
         "  scale: {max: 2, by: hpa}\n",
         ["LocalQueue gpus", "custom.metrics.k8s.io", "controller: resources.provisioning.warmSpares."], "scale."),
        ("kubernetes", "  resources: {gpu: L4, gpus: 2, nodes: 2}\n",
         ["LeaderWorkerSet", "2 nodes of 1 GPU."], "No effect"),
        ("compose", BY_KARPENTER + "  replicas: 3\n", ["compose: resources.provisioning, replicas."], "Replicas:"),
        ("compose", "  resources: {gpu: L4}\n  replicas: 1\n", ["variant"], "No effect"),
        ("compose", TEMPLATED, ["No effect for compose: template."], "RuntimeClass"),
        ("up", TEMPLATED, ["No effect for up: template."], "RuntimeClass"),
        ("llm-d", TEMPLATED, ["RuntimeClass nvidia", "No effect for llm-d: template.labels."], "template.runtime"),
        ("kubernetes", TEMPLATED, ["RuntimeClass nvidia", "ConfigMap prompts"], "No effect"),
        ("karpenter", "  resources: {gpu: L4, tolerations: [{key: team, value: a}], provisioning: {by: karpenter}}\n",
         ["agents that tolerate team"], "agent.nodeSelector"),
        ("karpenter", "  resources: {gpus: 0, memory: 8Gi, provisioning: {by: karpenter}}\n",
         ["agent.nodeSelector"], "agents that tolerate team"),
    ],
)  # fmt: skip
def test_the_header_tells_who_else_is_needed_and_what_is_left_out(
    file: Path, capsys: pytest.CaptureFixture[str], target: str, more: str, says: list[str], silent: str
) -> None:  # fmt: skip
    give(file, more)
    words = ["--node-class", "EC2NodeClass/gpu"] if target == "karpenter" else []
    text = output(capsys, "-f", str(file), "--to", target, *words)
    lines = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#")]
    head = re.sub(r"\s+", " ", " ".join(lines))
    assert [each for each in says if each not in head] == []
    assert silent not in head


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
        'image: ""', "hub: org/model"
    )
    path.write_text(text)
    assert main(["render", "-f", str(path), "--to", "kubernetes"]) == 2
    assert "weightyard build hf://org/model" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["kubernetes", "compose", "llm-d", "llm-d-pool"])
@pytest.mark.parametrize("part", ["model", "adapter"])
def test_a_directory_of_this_machine_is_refused_where_nobody_could_read_it(
    file: Path, capsys: pytest.CaptureFixture[str], target: str, part: str, image: str
) -> None:
    """Before anything is read of it: the directory needn't exist."""
    text = file.read_text()
    if part == "model":
        text = text.replace(image, "oci:./out:v1")
    else:
        text += '  runtime: {adapters: [{name: a, image: "oci:./out:v1"}]}\n'
    file.write_text(text)
    assert main(["render", "-f", str(file), "--to", target]) == 2
    said = capsys.readouterr().err
    assert f"oci:./out:v1 is a directory of this machine, which {target} can't read" in said
    assert "weightyard copy oci:./out:v1" in said


def test_a_directory_is_rendered_for_this_machine(
    file: Path, capsys: pytest.CaptureFixture[str], image: str, tmp_path: Path
) -> None:
    layout = f"oci:{tmp_path}/out:v1"
    assert main(["-q", "copy", image, layout, "--all-tags"]) == 0
    file.write_text(file.read_text().replace(image, layout))
    assert yaml.safe_load(output(capsys, "-f", str(file), "--to", "up"))["model"]["image"]


def test_a_source_is_built_for_this_machine_as_up_builds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    with Hub() as hub:
        hub.add("org/tiny", synthetic_checkpoint(tmp_path / "model", total_bytes=4_000_000))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("WEIGHTYARD_ROOT", str(home / "root"))
        path = tmp_path / "hub.yaml"
        document = DOCUMENT.format(image="", variant="bf16", gpu="L4")
        path.write_text(document.replace('image: ""', "hub: org/tiny"))
        found = yaml.safe_load(output(capsys, "-f", str(path), "--to", "up"))
    assert str(home / "root" / "built") in found["model"]["image"]


def test_the_cache_is_the_source_where_the_registry_is_gone(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path,
    image: str, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("WEIGHTYARD_ROOT", str(home / "root"))
    with DockerRegistry() as leaving:
        there = f"{leaving.host}/team/tiny:v1"
        assert main(["-q", "copy", image, there, "--all-tags"]) == 0
        assert main(["-q", "pull", there]) == 0
    file.write_text(file.read_text().replace(image, there))
    assert main(["render", "-f", str(file), "--to", "compose"]) == 11
    assert yaml.safe_load(output(capsys, "-f", str(file), "--to", "up"))["model"]["image"] == there


def test_yaml_is_for_people(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No anchors; scripts in lines; a header that says what made it, from what, and what it needs."""
    file.write_text(
        file.read_text().replace("variant: auto}", "variant: auto, pullSecret: registry}")
    )
    text = output(capsys, "-f", str(file), "--to", "kubernetes")
    assert not re.search(r"(?:^|[\s-])[&*]id\d+", text)
    assert "\n".join(
        (" " * 18 + "time.sleep(5)", " " * 18 + "while time.monotonic() < end:")
    ) in re.sub(r"^ +(?=time\.sleep\(5\)|while time)", " " * 18, text, flags=re.MULTILINE)
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert text.splitlines()[: len(head)] == head
    joined = re.sub(r"\s+", " ", " ".join(line.removeprefix("#") for line in head))
    for said in (
        f"Rendered by weightyard {version('weightyard')} for kubernetes", str(file), "variant bf16",
        "cache.weightyard.dev", "Needs: the Secret registry", "--scrape-from",
    ):  # fmt: skip
        assert said in joined


@pytest.mark.parametrize("target", ["llm-d", "llm-d-pool", "compose", "up"])
def test_every_target_says_what_it_needs(
    file: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    text = output(capsys, "-f", str(file), "--to", target)
    head = " ".join(line for line in text.splitlines() if line.startswith("#"))
    words = {
        "llm-d": ["llm-d-modelservice", "routing.proxy", "modelArtifacts"],
        "llm-d-pool": ["endpoint picker", "inferencepool"],
        "compose": ["podman-compose"],
        "up": ["weightyard up"],
    }
    assert [each for each in words[target] if each not in head] == []
    # A command to read needs nothing, and says so by saying nothing.
    assert ("Needs:" in head) == (target != "up")


def test_metrics_are_announced_only_where_they_are_let_through(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rendered(*words: str) -> tuple[dict[str, str], str]:
        text = output(capsys, "-f", str(file), "--to", "kubernetes", *words)
        objects = {each["kind"]: each for each in yaml.safe_load_all(text)}
        annotations = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        return annotations, str(objects["NetworkPolicy"]["spec"]["ingress"])

    annotations, ingress = rendered()
    assert [name for name in annotations if name.startswith("prometheus.io/")] == []
    assert "monitoring" not in ingress
    annotations, ingress = rendered("--scrape-from", "monitoring")
    assert annotations["prometheus.io/scrape"] == "true"
    assert f"'port': {annotations['prometheus.io/port']}" in ingress
    assert "{'kubernetes.io/metadata.name': 'monitoring'}" in ingress
