"""Commands on a CPU with AVX-512 and on one without, whatever this machine's is: /proc/cpuinfo is mounted over.

Each command runs in a mount namespace of its own; that needs root. The server is the stand-in for vLLM.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import Terminal, workspace

pytestmark = pytest.mark.servers

AVX2 = "flags\t\t: fpu avx2 fma\n"
AVX512 = "flags\t\t: fpu avx2 fma avx512f\n"
MOUNTED = 'mount --bind "$0" /proc/cpuinfo && exec "$@"'


@dataclass
class OtherCpu:
    """A terminal on a machine with another CPU."""

    terminal: Terminal
    cpuinfo: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        namespace = ["unshare", "--mount", "sh", "-c", MOUNTED, str(self.cpuinfo)]
        return subprocess.run(
            [*namespace, sys.executable, "-m", "weightyard.cli", *arguments],
            cwd=self.terminal.directory, env=self.terminal.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint, `checkpoint`, and an image of it that has INT4 too, `image:v1`."""
    base = tmp_path_factory.mktemp("quantized")
    synthetic_checkpoint(base / "checkpoint", total_bytes=4_000_000)
    image = f"oci:{base}/image:v1"
    Terminal(base).ok(
        "build", str(base / "checkpoint"), "--variant", "int4", "--engine", "rtn", "--to", image
    )
    return base


def on(terminal: Terminal, cpuinfo: str) -> OtherCpu:
    path = terminal.directory / "cpuinfo"
    path.write_text(cpuinfo)
    return OtherCpu(terminal, path)


def four_bits(terminal: Terminal, quantized: Path) -> str:
    """A Workspace that asks for INT4."""
    model = {"image": f"oci:{quantized}/image:v1", "variant": "int4"}
    return str(workspace(terminal.directory, "tiny", "", model=model))


def test_up_serves_four_bits_where_the_cpu_has_their_kernels(
    terminal: Terminal, quantized: Path
) -> None:
    done = on(terminal, AVX512).run(
        "up", "-d", four_bits(terminal, quantized), "--port", "0", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variant"] == "int4"


@pytest.mark.parametrize("mode", [[], ["-d"]])
def test_up_refuses_four_bits_elsewhere_before_a_byte_is_pulled(
    terminal: Terminal, quantized: Path, mode: list[str]
) -> None:
    done = on(terminal, AVX2).run("up", *mode, four_bits(terminal, quantized), "--port", "0")
    assert done.returncode == 10
    assert "only on CPUs with AVX-512, which is missing here" in done.stderr
    assert "Set spec.model.variant to one that runs here (bf16, int8)" in done.stderr
    assert terminal.models() == []


@pytest.mark.parametrize(("cpuinfo", "code"), [(AVX512, 0), (AVX2, 10)])
def test_render_to_up_plans_for_this_machine(
    terminal: Terminal, quantized: Path, cpuinfo: str, code: int
) -> None:
    done = on(terminal, cpuinfo).run("render", "-f", four_bits(terminal, quantized), "--to", "up")
    assert done.returncode == code, done.stderr
    assert ("AVX-512" in done.stderr) == bool(code)


@pytest.mark.servers
def test_render_for_other_machines_says_what_they_must_have(
    terminal: Terminal, quantized: Path, registry: DockerRegistry
) -> None:
    image = f"{registry.host}/four-bits:v1"
    terminal.ok("copy", f"oci:{quantized}/image:v1", image, "--all-tags")
    model = {"image": image, "variant": "int4"}
    file = workspace(terminal.directory, "tiny", "", model=model)
    done = on(terminal, AVX2).run("render", "-f", str(file), "--to", "compose")
    assert done.returncode == 0, done.stderr
    assert "int4 needs AVX-512 on a CPU" in done.stderr


@pytest.mark.servers
def test_render_says_it_of_a_published_quantization_too(
    terminal: Terminal, quantized: Path, registry: DockerRegistry
) -> None:
    config = json.loads((quantized / "checkpoint/config.json").read_text())
    shutil.copytree(quantized / "checkpoint", terminal.directory / "awq")
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (terminal.directory / "awq/config.json").write_text(json.dumps(config))
    image = f"{registry.host}/published:v1"
    terminal.ok("build", str(terminal.directory / "awq"), "--to", image)
    file = workspace(terminal.directory, "tiny", image)
    done = on(terminal, AVX2).run("render", "-f", str(file), "--to", "compose")
    assert "awq needs AVX-512 on a CPU" in done.stderr


@pytest.mark.vllm
@pytest.mark.parametrize("command", ["build", "quantize"])
def test_measuring_with_vllm_is_refused_before_anything_is_made(
    terminal: Terminal, quantized: Path, command: str
) -> None:
    source, measured = (
        str(quantized / "checkpoint"),
        ("--engine", "rtn", "--evaluator", "vllm", "--evaluate"),
    )
    terminal.fake = None
    words = {
        "build": ("build", source, "--variant", "int4", *measured, "--to", "oci:./out:v1"),
        "quantize": ("quantize", source, "out", "--scheme", "int4", *measured),
    }
    done = on(terminal, AVX2).run(*words[command])
    assert done.returncode == 2
    assert "AVX-512" in done.stderr
    assert "--evaluator transformers" in done.stderr
    assert not (terminal.directory / "out").exists()


@pytest.mark.parametrize(("cpuinfo", "level"), [(AVX512, "ok"), (AVX2, "warn")])
def test_the_doctor_says_what_this_cpu_serves(terminal: Terminal, cpuinfo: str, level: str) -> None:
    done = on(terminal, cpuinfo).run(
        "doctor", "--json", "--disk-trial", "0", "--kubelet", str(terminal.directory / "none")
    )
    checks = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert checks["CPU"]["level"] == level
    assert ("int4" in checks["CPU"]["advice"]) == (level == "warn")
