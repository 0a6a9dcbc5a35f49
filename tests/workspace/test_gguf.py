"""What llama.cpp is given of a GGUF model's image: the model, what stands beside it, and its default parameters."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest

from modelimage.descriptor import LINUX_AMD64
from modelimage.foreign import served_from_image
from tests.modelimage.foreign.images import DOCKER_CONFIG, Maker
from tests.workspace.samples import workspace
from workspace.hardware import Hardware
from workspace.launch_plan import LaunchPlan, Site, choose_variant, plan_launch

OLLAMA = "application/vnd.ollama.image"
PARAMETERS = {"temperature": 0.6, "top_k": 20, "stop": ["<|im_end|>"], "num_gpu": 1, "seed": True}


def planned(directory: Path, layers: dict[str, bytes]) -> LaunchPlan:
    """The launch of an Ollama image with these layers, by type."""
    maker = Maker(directory)
    blobs = [maker.blob(f"{OLLAMA}.{kind}", data) for kind, data in layers.items()]
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    maker.manifest(maker.json(DOCKER_CONFIG, {"os": "linux"}), blobs, mediaType=kind)
    served = served_from_image(maker.layout, maker.layout.resolve("latest"), LINUX_AMD64)
    each = workspace(runtime={"engine": "llama.cpp", "contextLength": 4096})
    hardware = Hardware(None, 0)
    fit = choose_variant(each, {served.variant: served}, hardware)
    site = Site(PurePosixPath("/models/m"), "127.0.0.1", 8123)
    return plan_launch(each, record=served, fit=fit, hardware=hardware, site=site)


def pairs(plan: LaunchPlan) -> set[tuple[str, str]]:
    return set(zip(plan.args, plan.args[1:], strict=False))


def test_the_model_is_served_with_what_stands_beside_it(tmp_path: Path) -> None:
    layers = {"adapter": b"lora", "projector": b"eyes", "model": b"weights"}
    found = pairs(planned(tmp_path, layers))
    assert ("--model", "/models/m/model.gguf") in found
    assert ("--mmproj", "/models/m/model.mmproj") in found
    assert ("--lora", "/models/m/adapter.gguf") in found


def test_the_image_s_parameters_are_the_server_s_defaults(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"model": b"w", "params": json.dumps(PARAMETERS).encode()})
    assert {("--temp", "0.6"), ("--top-k", "20")} <= pairs(plan)
    # A list, one that is Ollama's own, and one that is no number.
    assert not {"--stop", "--num-gpu", "--seed"} & set(plan.args)


@pytest.mark.parametrize("data", [b"", b"[]", b"not JSON", b'{"temperature": 1e999}'])
def test_parameters_that_are_none_are_left_out(tmp_path: Path, data: bytes) -> None:
    assert "--temp" not in planned(tmp_path, {"model": b"w", "params": data}).args
