"""The real small model through every scheme: built, pushed, pulled by the agent, served or loaded, and measured.

One image holds what `auto` makes (INT8 rounded, INT4 calibrated by GPTQModel) and INT8 for GPUs; a second one INT4
rounded. Everything goes through the commands that users type, a real registry and a real vLLM. What vLLM can't load
on a CPU is loaded by transformers with the compressed-tensors library, which shares no code with ours.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelimage.safetensors import TensorInfo
from quantize.calibration import load_evaluation
from quantize.checkpoint import open_checkpoint
from tests.builder.building import REPOSITORY
from tests.servers.cpu import serves
from tests.servers.registry import DockerRegistry
from tests.servers.vllm import VllmServer

pytestmark = [
    pytest.mark.servers,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

PROMPT = "The capital of France is"
KV_SPACE = 1 << 30  # VLLM_CPU_KVCACHE_SPACE=1
PARAMETERS = 134_515_008

# What a variant may cost this model: perplexity ratio and KL divergence in nats.
BOUNDS = {
    "int8": (1.06, 0.05),
    "int8-w8a16": (1.02, 0.02),
    "int4": (1.25, None),
    "int4-rounded": (1.60, None),
}
# What vLLM says that it serves, by variant.
SERVED_AS = {
    "int8": "compressed-tensors",
    "int4": "auto_gptq",
    "int4-rounded": "compressed-tensors",
}

_COMMAND = "import sys, weightyard.cli; sys.exit(weightyard.cli.main())"
_LOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
source, directory, prompt, text = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(directory)
load = lambda where: AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16).eval()
subject, reference = load(directory), load(source)
ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
told = subject.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1]:]
window = tokenizer(text, return_tensors="pt")["input_ids"][:, :256]
with torch.inference_mode():
    expected = torch.log_softmax(reference(window).logits[0].float(), -1)
    found = torch.log_softmax(subject(window).logits[0].float(), -1)
divergence = float((expected.exp() * (expected - found)).sum(-1).mean())
print(json.dumps([tokenizer.decode(told), divergence]))
"""


@dataclass(frozen=True)
class Variants:
    """Where the variants of the real model are published, and the root of the cache that pulls them."""

    calibrated: str
    rounded: str
    root: Path

    def find(self, name: str) -> tuple[str, str]:
        """The image and the variant's name in it."""
        return (self.rounded, "int4") if name == "int4-rounded" else (self.calibrated, name)


def weightyard(*arguments: str | Path) -> Any:
    """What a command answers, as JSON. A process of its own, as long as it takes."""
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *map(str, arguments), "--json"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def variants(
    smollm2: Path,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Variants:
    scratch = tmp_path_factory.mktemp("variants")
    repository = f"{registry.host}/{unique_name('team/variants')}"
    made = Variants(f"{repository}:v1", f"{repository}:rounded", scratch / "cache")
    build = ("build", smollm2, "--evaluate", "--work-dir", scratch / "work", "--to")
    names = ["--variant", "int8", "--variant", "int4", "--variant", "int8-w8a16"]
    # A quarter of the shipped text: GPTQ's time grows with it, and the bounds are kept with as much.
    gates = "--max-ppl-ratio", "1.25", "--calibration-samples", "30"
    weightyard(*build, made.calibrated, *names, *gates)
    weightyard(*build, made.rounded, "--variant", "int4", "--engine", "rtn")
    return made


@pytest.mark.parametrize("name", BOUNDS)
def test_the_quality_published_beside_a_variant_is_within_bounds(
    variants: Variants, name: str
) -> None:
    image, variant = variants.find(name)
    quality = weightyard("inspect", image, "--variant", variant)["quality"]
    engine = "gptq" if name == "int4" else "rtn"
    assert (quality["scheme"], quality["engine"]) == (variant, engine)
    ratio, divergence = BOUNDS[name]
    found = quality["comparison"]
    assert found["perplexityRatio"] <= ratio
    assert divergence is None or found["klDivergence"] <= divergence
    assert found["klDivergence"] > 0
    assert found["tokens"] > 1500


@pytest.mark.parametrize("name", SERVED_AS)
def test_vllm_serves_what_the_agent_pulled(variants: Variants, name: str) -> None:
    """A sane answer, and weights and KV cache of the size that the record says; else a refusal that says why."""
    image, variant = variants.find(name)
    if not serves(variant):
        check_refused(image, variant, variants.root)
        return
    pulled = weightyard("pull", image, "--variant", variant, "--root", variants.root)
    facts = weightyard("inspect", image, "--variant", variant)["record"]["model"]
    with VllmServer(Path(pulled["path"])) as server:
        assert "Paris" in server.complete(PROMPT, max_tokens=16)
        log = server.log_text()
    assert f"quantization={SERVED_AS[name]}" in log
    assert facts["parameters"] == PARAMETERS
    tokens = KV_SPACE / facts["kvCacheBytesPerToken"]
    assert _logged(log, r"KV cache size: ([\d,]+) tokens") == pytest.approx(tokens, rel=0.02)
    assert facts["weightBytes"] == _stored_bytes(Path(pulled["path"]))


def check_refused(image: str, variant: str, root: Path) -> None:
    """`up` doesn't start a server that would die."""
    model = {"image": image, "variant": variant}
    document = {
        "apiVersion": "weightyard.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "refused"},
        "spec": {"model": model, "resources": {"gpus": 0}},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, "up", "-", "--root", str(root)],
        input=json.dumps(document), cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 10, done.stderr
    assert "AVX-512" in done.stderr
    assert "bf16, int8" in done.stderr


def test_transformers_loads_what_vllm_keeps_for_gpus(variants: Variants, smollm2: Path) -> None:
    image, variant = variants.find("int8-w8a16")
    pulled = weightyard("pull", image, "--variant", variant, "--root", variants.root)
    text = "\n\n".join(load_evaluation().samples)
    job = [str(smollm2), pulled["path"], PROMPT, text]
    done = subprocess.run(
        [sys.executable, "-c", _LOAD], input=json.dumps(job), stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    told, divergence = json.loads(done.stdout.splitlines()[-1])
    assert "Paris" in told
    assert 0 < divergence < 0.02


def test_the_record_says_how_to_make_a_calibrated_variant_again(variants: Variants) -> None:
    made = weightyard("inspect", variants.calibrated, "--variant", "int4")["record"]["quantization"]
    assert made["engineVersions"].keys() == {"gptqmodel", "torch"}
    assert made["threads"] > 0
    assert made["calibration"].startswith("sha256:")
    assert made["calibrationSamples"] == 30
    assert made["reproducible"] == "same engine, threads and CPU class"
    other = weightyard("inspect", variants.rounded, "--variant", "int4")["record"]["quantization"]
    assert other["reproducible"] == "anywhere"


def test_diff_shows_what_the_calibration_gains(variants: Variants) -> None:
    found = weightyard("diff", variants.rounded, variants.calibrated, "--variant", "int4")
    rounded, calibrated = (found[side]["quality"]["comparison"] for side in ("first", "second"))
    assert calibrated["klDivergence"] < rounded["klDivergence"]


def _logged(log: str, pattern: str) -> int:
    found = re.search(pattern, log)
    assert found is not None, log[-3000:]
    return int(found[1].replace(",", ""))


def _stored_bytes(model: Path) -> int:
    tensors: list[TensorInfo] = [
        t for header in open_checkpoint(model).shards.values() for t in header.tensors
    ]
    return sum(tensor.size for tensor in tensors)
