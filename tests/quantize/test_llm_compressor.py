"""The real llm-compressor, in an environment of its own, on a tiny random model: every method, end to end.

What it made is read back by the tests' own reference and compared with the source; its quality on a real model is in
docs/quantize.md. `scripts/setup.sh` makes the environment.
"""

from __future__ import annotations

import hashlib
import json
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.dequantize import TensorFile
from quantize.engines import llm_compressor
from quantize.quantizer import QuantizeOptions, QuantizeResult, quantize_checkpoint
from quantize.schemes import Method, QuantizationEngine, Scheme
from tests.quantize import checkpoints, reference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PYTHON = Path(sys.prefix) / "llmcompressor" / "bin" / "python"
MODEL = checkpoints.llama()
# How far weights may be from the source's, up to what the method rescales (dB); rounding gives 19 and 40.
LEAST = {Scheme.INT8: 25.0, Scheme.INT4: 13.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama with a tokenizer of single characters."""
    root = tmp_path_factory.mktemp("source") / "model"
    checkpoints.write(root, MODEL)
    characters = ["?", *sorted(set(string.printable) - set("?\t\n\r\x0b\x0c"))]
    tokenizer = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
        "decoder": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated",
                          "invert": False},
        "model": {"type": "WordLevel", "unk_token": "?",
                  "vocab": {character: n for n, character in enumerate(characters)}},
    }  # fmt: skip
    (root / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?"}
    (root / "tokenizer_config.json").write_text(json.dumps(settings))
    return root


def compress(
    source: Path, place: Path, scheme: Scheme, method: Method, monkeypatch: pytest.MonkeyPatch
) -> QuantizeResult:
    """Quantize into the new directory `place`, beside a calibration text."""
    monkeypatch.setenv(llm_compressor.VARIABLE, str(PYTHON))
    place.mkdir()
    text = place / "calibration.txt"
    boats = [f"{n} boats went out in the morning, {n} came back." for n in range(8)]
    text.write_text("\n\n".join(boats))
    options = QuantizeOptions(
        scheme, engine=QuantizationEngine.LLM_COMPRESSOR, method=method, calibration=text, threads=2
    )
    return quantize_checkpoint(source, place / "out", options)


@pytest.fixture(scope="module")
def calibrated(source: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    """INT4 by GPTQ: made once, looked at by two tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = tmp_path_factory.mktemp("once") / "first"
        return compress(source, place, Scheme.INT4, Method.GPTQ, monkeypatch)


def test_gptq_makes_int4_near_its_source(source: Path, calibrated: QuantizeResult) -> None:
    check(source, calibrated, Method.GPTQ)


@pytest.mark.parametrize(
    ("scheme", "method"),
    [(Scheme.INT8, Method.SMOOTHQUANT), (Scheme.INT4, Method.AWQ)],
    ids=lambda value: value.value,
)
def test_methods_that_rescale_stay_near_their_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: Scheme, method: Method
) -> None:
    check(source, compress(source, tmp_path / "new", scheme, method, monkeypatch), method)


def test_compressing_twice_gives_the_same_bytes(
    source: Path, tmp_path: Path, calibrated: QuantizeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = compress(source, tmp_path / "second", Scheme.INT4, Method.GPTQ, monkeypatch)
    assert digests(again.out) == digests(calibrated.out)
    assert again.recipe == calibrated.recipe


def check(source: Path, result: QuantizeResult, method: Method) -> None:
    """Every matrix, the recipe, the config, and that nothing else is there."""
    scheme = result.plan.scheme
    group = 128 if scheme is Scheme.INT4 else None
    assert (result.recipe["method"], result.recipe["groupSize"]) == (method.value, group)
    assert result.recipe["engineVersions"].keys() == {
        "llmcompressor",
        "compressed-tensors",
        "torch",
    }
    made, data = TensorFile(result.out / "model.safetensors"), checkpoints.weights(MODEL)
    for module in MODEL.matrices:
        exact, found = (
            checkpoints.source_matrix(MODEL, data, module),
            restored(made, module, scheme),
        )
        assert found.shape == exact.shape
        near = rescaled(exact, found) if method.rescales else exact
        assert decibels(near, found) > LEAST[scheme], module
    config = json.loads((result.out / "config.json").read_text())
    assert config["quantization_config"]["format"] == result.plan.format.value
    assert str(result.out.parent) not in json.dumps(config)
    assert {path.name for path in result.out.iterdir()} == {path.name for path in source.iterdir()}
    assert {path.name for path in result.out.parent.iterdir()} == {"out", "calibration.txt"}


def digests(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


def restored(file: TensorFile, module: str, scheme: Scheme) -> reference.Floats:
    """A quantized matrix as float32, by what the format says and not by the product's reader of it."""
    scales = file.matrix(f"{module}.weight_scale")
    if scheme is Scheme.INT8:
        return reference.dequantize(file.matrix(f"{module}.weight").astype(np.int32), scales)
    words = file.matrix(f"{module}.weight_packed").view(np.uint32)
    rows, columns = file.raw(f"{module}.weight_shape")
    values = np.empty((rows, columns), np.int32)
    for lane in range(8):
        values[:, lane::8] = ((words >> np.uint32(4 * lane)) & np.uint32(0xF)).astype(np.int32) - 8
    return reference.dequantize(values, scales)


def rescaled(exact: reference.Floats, found: reference.Floats) -> reference.Floats:
    """The source's matrix times the factor of each column and then of each row that fits best."""
    for axis in (0, 1):
        exact = exact * (
            (exact * found).sum(axis, keepdims=True) / (exact * exact).sum(axis, keepdims=True)
        )
    return exact


def decibels(exact: reference.Floats, found: reference.Floats) -> Any:
    return 10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum())
