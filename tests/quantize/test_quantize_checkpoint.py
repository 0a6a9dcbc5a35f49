"""Whole checkpoints through the built-in engine, against the numpy reference and the safetensors library."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from modelimage.errors import Busy, InvalidCheckpoint, InvalidInput, NotFound, UnsafePickle
from quantize.engines import llm_compressor
from quantize.errors import (
    AlreadyQuantized,
    BrokenWeights,
    IncompatibleOptions,
    QualityTooLow,
    UnsupportedArchitecture,
)
from quantize.quantizer import QuantizeOptions, quantize_checkpoint
from quantize.schemes import NUMERICS, Format, QuantizationEngine, Scheme
from quantize.staging_dir import open_staging
from tests.quantize import checkpoints, reference
from tests.quantize.checkpoints import Model
from tests.servers.process import wait_until

MODELS = {
    "llama": checkpoints.llama(),
    "mistral": checkpoints.llama("MistralForCausalLM", "mistral"),
    "qwen2": checkpoints.qwen2(),
    "qwen3": checkpoints.llama("Qwen3ForCausalLM", "qwen3"),
    "phi3": checkpoints.phi3(),
    "gemma": checkpoints.gemma(),
    "mixtral": checkpoints.mixtral(),
    "qwen3-moe-fused": checkpoints.fused_experts(),
    "llama4-fused": checkpoints.fused_experts("llama4"),
    "multimodal": checkpoints.multimodal(),
}
SCHEMES = [
    (Scheme.INT8, Format.INT_QUANTIZED),
    (Scheme.INT8_W8A16, Format.PACK_QUANTIZED),
    (Scheme.INT4, Format.PACK_QUANTIZED),
    (Scheme.INT4, Format.GPTQ),
]


def rtn(scheme: Scheme = Scheme.INT4, **more: Any) -> QuantizeOptions:
    return QuantizeOptions(scheme, engine=QuantizationEngine.RTN, **more)


def digests(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.iterdir())}


def load(root: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor by the reference reader: dtype, shape, bytes."""
    out = {}
    for path in sorted(root.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            assert file.metadata()["format"] == "pt"
        header_size = int.from_bytes(path.read_bytes()[:8], "little")
        blob = path.read_bytes()
        header = json.loads(blob[8 : 8 + header_size])
        for name, entry in header.items():
            if name != "__metadata__":
                start, stop = (8 + header_size + each for each in entry["data_offsets"])
                out[name] = (entry["dtype"], tuple(entry["shape"]), blob[start:stop])
    return out


def expected(
    weight: reference.Floats, scheme: Scheme, format_: Format, group: int
) -> dict[str, Any]:
    """What the format must hold for a matrix, by the reference."""
    bits = NUMERICS[scheme].bits
    values, scales = reference.quantize(weight, bits, group)
    rows, columns = weight.shape
    if format_ is Format.INT_QUANTIZED:
        return {"weight": values.astype(np.int8), "weight_scale": scales}
    words = reference.pack_words(values, bits)
    if format_ is Format.PACK_QUANTIZED:
        shape = np.array([rows, columns], np.int64)
        return {"weight_packed": words, "weight_scale": scales, "weight_shape": shape}
    zeros = np.full((columns // group, rows // 8), 0x77777777, np.int32)
    index = (np.arange(columns) // group).astype(np.int32)
    return {"qweight": words.T, "scales": scales.T, "qzeros": zeros, "g_idx": index}


@pytest.mark.parametrize(("scheme", "format_"), SCHEMES, ids=lambda value: value.value)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_equals_the_reference(
    tmp_path: Path, name: str, scheme: Scheme, format_: Format
) -> None:
    model = MODELS[name]
    data = checkpoints.write(tmp_path / "src", model, shards=2)
    result = quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn(scheme, format=format_))
    found = load(tmp_path / "out")
    wanted: dict[str, tuple[tuple[int, ...], bytes]] = {}
    for module in model.matrices:
        weight = checkpoints.source_matrix(model, data, module)
        for suffix, array in expected(weight, scheme, format_, result.plan.group).items():
            wanted[f"{module}.{suffix}"] = (array.shape, np.ascontiguousarray(array).tobytes())
    kept = {name: data[name] for name in data if name in found and name not in wanted}
    assert found.keys() == wanted.keys() | kept.keys()
    for tensor, (shape, content) in wanted.items():
        assert found[tensor][1:] == (shape, content), tensor
    for tensor, (dtype, content) in kept.items():
        assert found[tensor] == (dtype, model.shapes[tensor], content), tensor
    quantized = {f"{module}.weight" for module in model.matrices}
    fused = {name for name in data if ".experts." in name and name not in quantized}
    assert data.keys() - kept.keys() == (quantized & data.keys()) | fused


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_float_dtypes(tmp_path: Path, dtype: str) -> None:
    model = MODELS["llama"]
    data = checkpoints.write(tmp_path / "src", model, dtype=dtype)
    quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())
    found = load(tmp_path / "out")
    module = "model.layers.1.mlp.down_proj"
    weight = checkpoints.source_matrix(model, data, module)
    words = expected(weight, Scheme.INT4, Format.PACK_QUANTIZED, 128)["weight_packed"]
    assert found[f"{module}.weight_packed"][2] == words.tobytes()
    assert found["model.norm.weight"][0] == dtype


@pytest.mark.parametrize(("scheme", "format_"), SCHEMES, ids=lambda value: value.value)
def test_bytes_are_the_same_on_any_number_of_threads(
    tmp_path: Path, scheme: Scheme, format_: Format
) -> None:
    checkpoints.write(tmp_path / "src", MODELS["llama4-fused"], shards=3)
    for threads in (1, 2, 5):
        options = rtn(scheme, format=format_, threads=threads)
        result = quantize_checkpoint(tmp_path / "src", tmp_path / str(threads), options)
        assert result.quality.sqnr.mean > 15
    assert digests(tmp_path / "1") == digests(tmp_path / "2") == digests(tmp_path / "5")


def test_shards_index_and_small_files_mirror_the_source(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "src", MODELS["llama"], shards=3)
    (tmp_path / "src" / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "src" / "consolidated.safetensors").write_bytes(b"another layout of the same")
    quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    shards = {f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)}
    index = "model.safetensors.index.json"
    assert names == shards | {"config.json", "tokenizer.json", "README.md", index}
    document = json.loads((tmp_path / "out" / index).read_text())
    found = load(tmp_path / "out")
    assert document["weight_map"].keys() == found.keys()
    assert document["metadata"]["total_size"] == sum(len(each[2]) for each in found.values())
    for tensor, shard in document["weight_map"].items():
        with safe_open(tmp_path / "out" / shard, "np") as file:
            assert tensor in file.keys()  # noqa: SIM118 - safe_open has no `in`


def test_a_group_that_hidden_needs_is_chosen_for_all(tmp_path: Path) -> None:
    model = Model(
        MODELS["llama"].config,
        {
            "a.q_proj.weight": (16, 192),
            "b.down_proj.weight": (16, 256),
            "c.o_proj.weight": (16, 40),
        },
    )
    checkpoints.write(tmp_path / "src", model)
    result = quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())
    assert result.plan.group == 64
    assert result.plan.kept == {"c.o_proj": "no group of 64 divides its 40 columns"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["c.o_proj", "lm_head"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 64


def test_zero_rows_stay_zero(tmp_path: Path) -> None:
    model = MODELS["llama"]
    data = checkpoints.write(tmp_path / "src", model)
    name = "model.layers.0.mlp.up_proj.weight"
    data[name] = ("BF16", bytes(len(data[name][1])))
    checkpoints.write_file(tmp_path / "src" / "model.safetensors", model.shapes, data)
    result = quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())
    assert set(load(tmp_path / "out")[f"{name}_packed"][2]) == {0x88}
    assert result.quality.sqnr.matrices["model.layers.0.mlp.up_proj"] == 200


NOT_FINITE = {"NaN": 0x7FC0, "infinity": 0x7F80, "minus infinity": 0xFF80}


@pytest.mark.parametrize("bits", NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize(
    "engine", [QuantizationEngine.RTN, QuantizationEngine.LLM_COMPRESSOR], ids=lambda e: e.value
)
def test_what_is_not_finite_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, engine: QuantizationEngine
) -> None:
    """Whatever engine is asked for, and before another process is started."""
    monkeypatch.setenv(llm_compressor.VARIABLE, sys.executable)
    model = MODELS["llama"]
    data = checkpoints.write(tmp_path / "src", model)
    name = "model.layers.1.self_attn.k_proj.weight"
    spoilt = np.frombuffer(data[name][1], np.uint16).copy()
    spoilt[5 * checkpoints.HIDDEN + 9] = bits
    data[name] = ("BF16", spoilt.tobytes())
    checkpoints.write_file(tmp_path / "src" / "model.safetensors", model.shapes, data)
    with pytest.raises(BrokenWeights, match=r"layers\.1\.self_attn\.k_proj .* row 5"):
        quantize_checkpoint(
            tmp_path / "src", tmp_path / "out", QuantizeOptions(Scheme.INT4, engine=engine)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


class Interrupted(Exception):
    """Stands for the power going off in the middle of a run."""


def test_an_interrupted_run_is_continued_at_the_next_shard(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "src", MODELS["llama"], shards=4)
    quantize_checkpoint(tmp_path / "src", tmp_path / "whole", rtn())
    staged = tmp_path / ".out.partial"

    def stop_before_the_last(done: int, total: int) -> None:
        if done == total:  # the disk has been asked to finish all shards but the last
            wait_until(lambda: len(list(staged.glob("*.safetensors"))) >= 2, what="second shard")
            raise Interrupted

    with pytest.raises(Interrupted):
        quantize_checkpoint(
            tmp_path / "src", tmp_path / "out", rtn(threads=1), stop_before_the_last
        )
    assert not (tmp_path / "out").exists()
    kept = {p.name: p.stat().st_ino for p in staged.glob("*.safetensors")}
    assert 2 <= len(kept) < 4
    result = quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert kept.items() <= {p.name: p.stat().st_ino for p in (tmp_path / "out").iterdir()}.items()
    assert result.quality.sqnr.matrices.keys() == MODELS["llama"].matrices.keys()
    assert not staged.exists()


def test_an_interrupted_run_of_other_options_is_not_continued(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "src", MODELS["llama"], shards=2)

    def stop(done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn(Scheme.INT8, threads=1), stop)
    quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())
    quantize_checkpoint(tmp_path / "src", tmp_path / "fresh", rtn())
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "src", MODELS["mixtral"], shards=2)
    seen: list[tuple[int, int]] = []
    quantize_checkpoint(
        tmp_path / "src", tmp_path / "out", rtn(), lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_low_ratio_fails_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "src", MODELS["llama"])
    with pytest.raises(QualityTooLow, match="below the floor of 40"):
        quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn(min_sqnr=40))
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_two_processes_on_one_result(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "src", MODELS["llama"])
    with open_staging(tmp_path / "out", "held"), pytest.raises(Busy):
        quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())


def test_a_result_in_the_way_is_never_overwritten(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "src", MODELS["llama"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(InvalidInput, match="not empty"):
        quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())
    assert (tmp_path / "out" / "precious").read_text() == "x"


def test_the_recipe_holds_no_float_and_nothing_of_the_machine(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "src", MODELS["llama"])
    result = quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())
    text = json.dumps(result.recipe)
    assert str(tmp_path) not in text
    assert not any(isinstance(value, float) for value in result.recipe.values())
    assert result.recipe["groupSize"] == 128
    assert result.recipe["keptMatrices"] == {"embedding": 1, "output head": 1}


def _spoil_config(root: Path, **changes: Any) -> None:
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | changes))


def _without(*names: str) -> Any:
    def remove(root: Path) -> None:
        for name in names:
            (root / name).unlink()

    return remove


def _stray(root: Path) -> None:
    (root / "model-00003-of-00002.safetensors").write_bytes(
        (root / "model-00001-of-00002.safetensors").read_bytes()
    )


def _pickled(root: Path) -> None:
    for path in root.glob("*.safetensors*"):
        path.unlink()
    (root / "pytorch_model.bin").write_bytes(b"x")


def _unnamed(root: Path) -> None:
    index = root / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"].pop("model.norm.weight")
    index.write_text(json.dumps(document))


def _truncated(root: Path) -> None:
    path = root / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _scaled(root: Path) -> None:
    shapes = {"a.weight": (32, 32), "a.weight_scale_inv": (1, 1)}
    data = {"a.weight": ("F8_E4M3", bytes(1024)), "a.weight_scale_inv": ("F32", bytes(4))}
    for path in root.glob("*.safetensors*"):
        path.unlink()
    checkpoints.write_file(root / "model.safetensors", shapes, data)


BAD = {
    "no config": (_without("config.json"), InvalidCheckpoint, "has no config.json"),
    "no architecture": (
        lambda root: _spoil_config(root, architectures=None), InvalidCheckpoint, "no architecture"),
    "gptq already": (
        lambda root: _spoil_config(root, quantization_config={"quant_method": "gptq"}),
        AlreadyQuantized, "gptq"),
    "fp8 already": (_scaled, AlreadyQuantized, "F8_E4M3"),
    "gpt2": (
        lambda root: _spoil_config(root, model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        UnsupportedArchitecture, "Conv1D"),
    "no index": (_without("model.safetensors.index.json"), InvalidCheckpoint, "no model.safetensors.index"),
    "no index, one shard left": (
        _without("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
        InvalidCheckpoint, "one of several files"),
    "shard missing": (_without("model-00002-of-00002.safetensors"), InvalidCheckpoint, "which is missing"),
    "shard not in the index": (_stray, InvalidCheckpoint, "missing from model.safetensors.index"),
    "tensor not in the index": (_unnamed, InvalidCheckpoint, "doesn't name"),
    "truncated": (_truncated, InvalidCheckpoint, "truncated"),
    "pickle": (_pickled, UnsafePickle, "pickle"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_are_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    spoil, error, words = BAD[case]
    checkpoints.write(tmp_path / "src", MODELS["llama"], shards=2)
    spoil(tmp_path / "src")
    with pytest.raises(error, match=words) as caught:
        quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn())
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        quantize_checkpoint(tmp_path / "nowhere", tmp_path / "out", rtn())


def test_a_group_that_divides_nothing(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "src", MODELS["llama"])
    with pytest.raises(IncompatibleOptions, match="no group of 96 divides"):
        quantize_checkpoint(tmp_path / "src", tmp_path / "out", rtn(group_size=96))
