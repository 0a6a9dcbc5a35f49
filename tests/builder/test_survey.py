"""What a build packs of whole checkpoints as publishers lay them out: each folder's weights, shards and tokenizer."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from builder.build import BuildOptions
from builder.classify import select
from builder.sources.local import LocalSource
from builder.survey import survey
from modelimage.errors import InvalidCheckpoint, UnsafePickle
from modelimage.record import Role
from tests.builder.building import build_here
from tests.builder.checkpoints import CONFIG, TENSORS, single, weights, write
from tests.builder.surveys import surveyed

WEIGHTS = weights({"w": (4,)})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def weight_map(**shards: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": shards}).encode()


# Weights of each folder


@pytest.mark.parametrize(
    "pickle",
    [
        "2_Dense/pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
        "head.pt",
        "adapter_model.bin",
        "lora/adapter_model.bin",
    ],
)
def test_weights_that_are_nobodys_copy_are_never_dropped(tmp_path: Path, pickle: str) -> None:
    files = {pickle: b"x"}
    with pytest.raises(UnsafePickle, match=pickle) as caught:
        surveyed(tmp_path, files)
    assert "--convert-pickle" in str(caught.value.hint)
    assert surveyed(tmp_path, files, convert_pickle=True).selection.pickles == (pickle,)
    # Each way out that the hint names works.
    assert pickle in surveyed(tmp_path, files, exclude=(pickle,)).selection.ignored
    included = surveyed(tmp_path, files, include=(pickle,)).selection
    assert included.roles[pickle] is Role.CODE
    assert included.pickles == ()


@pytest.mark.parametrize(
    ("copy", "beside"),
    [
        ("pytorch_model.bin", "model.safetensors"),
        ("pytorch_model-00001-of-00002.bin", "model.safetensors"),
        ("pytorch_model.fp16.bin", "model.safetensors"),
        ("consolidated.00.pth", "model.safetensors"),
        ("consolidated.safetensors", "model.safetensors"),
        ("model.fp16.safetensors", "model.safetensors"),
        ("2_Dense/pytorch_model.bin", "2_Dense/model.safetensors"),
        ("vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors"),
        ("lora/adapter_model.bin", "lora/adapter_model.safetensors"),
    ],
)  # fmt: skip
def test_copies_are_left_out_beside_what_they_copy_only(copy: str, beside: str) -> None:
    both = select([copy, beside, "other/model.safetensors"])
    assert both.weights == sorted([beside, "other/model.safetensors"])
    assert copy in both.ignored
    alone = select([copy, "other/model.safetensors"])
    assert copy in (*alone.weights, *alone.pickles)


@pytest.mark.parametrize("head", ["colbert_linear.pt", "sparse_linear.pt"])
def test_a_pickle_that_engines_read_by_its_name_is_not_converted(tmp_path: Path, head: str) -> None:
    for convert_pickle in (True, False):
        with pytest.raises(UnsafePickle, match=head) as caught:
            surveyed(tmp_path, {head: b"x"}, convert_pickle=convert_pickle)
        assert "--include" in str(caught.value.hint)
    assert surveyed(tmp_path, {head: b"x"}, include=(head,)).selection.roles[head] is Role.CODE


@pytest.mark.parametrize("copy", ["pytorch_model.fp16.bin", "consolidated.00.pth"])
def test_pickles_may_be_copies_of_each_other(copy: str) -> None:
    selection = select(["pytorch_model.bin", copy, "head.pt"])
    assert selection.pickles == ("head.pt", "pytorch_model.bin")
    assert copy in selection.ignored


def test_a_pickle_is_included_by_its_exact_name_only(tmp_path: Path) -> None:
    with pytest.raises(UnsafePickle):
        surveyed(tmp_path, {"colbert_linear.pt": b"x"}, include=("*.pt",))


@pytest.mark.parametrize(
    "path",
    [
        "openvino/openvino_model.bin", "openvino_model_qint8_quantized.bin", "onnx/model.onnx", "model.onnx_data_1",
        "ggml-model-q4_0.bin", "coreml/x.mlpackage/Data/weight.bin", "x.mlpackage/Data/weight.bin", "metal/model.bin",
        "global_step10/mp_rank_00_model_states.pt", "optimizer.safetensors", "scheduler.pt", "random_states_0.pkl",
        "checkpoint-500/model.safetensors", "checkpoint-500/pytorch_model.bin", "checkpoint_best/model.safetensors",
        "epoch-3/model.safetensors", "step_1000/pytorch_model.bin",
    ],
)  # fmt: skip
def test_what_no_server_loads_needs_no_conversion(path: str) -> None:
    selection = select(["model.safetensors", path])
    assert selection.weights == ["model.safetensors"]
    assert selection.pickles == ()


def test_the_configuration_of_a_scheduler_is_packed() -> None:
    assert select(["scheduler/scheduler_config.json"]).roles


# Shards


@pytest.mark.parametrize("folder", ["", "text_encoder/"])
@pytest.mark.parametrize(
    "index",
    [
        "model.safetensors.index.json",
        "model.safetensors.index.fp16.json",
        "x_index.json",
        "shards.json",
    ],
)
def test_a_shard_that_any_index_names_is_missed(tmp_path: Path, folder: str, index: str) -> None:
    files = {f"{folder}{index}": weight_map(w="a.safetensors", v="b.safetensors")}
    files[f"{folder}a.safetensors"] = WEIGHTS
    with pytest.raises(InvalidCheckpoint, match=f"names '{folder}b.safetensors'"):
        surveyed(tmp_path, files)


@pytest.mark.parametrize(
    "shard", ["unet/x-00002-of-00002.safetensors", "x_00000-of-00002.safetensors"]
)
def test_a_shard_that_a_name_promises_is_missed(tmp_path: Path, shard: str) -> None:
    with pytest.raises(InvalidCheckpoint, match="is missing") as caught:
        surveyed(tmp_path, {shard: WEIGHTS})
    excluded = shlex.split(str(caught.value.hint))[-1]
    assert surveyed(tmp_path, {shard: WEIGHTS}, exclude=(excluded,)).selection.weights == [
        "model.safetensors"
    ]


def test_a_missing_pickle_is_missed_before_conversion(tmp_path: Path) -> None:
    files = {
        "bert/pytorch_model.bin.index.json": weight_map(a="one.bin", b="two.bin"),
        "bert/one.bin": b"x",
    }
    with pytest.raises(InvalidCheckpoint, match=r"names 'bert/two.bin'"):
        surveyed(tmp_path, files, convert_pickle=True)


def test_an_index_of_pickles_under_any_name_is_replaced(tmp_path: Path) -> None:
    files = {"bert/model.index.json": weight_map(a="one.bin"), "bert/one.bin": b"x"}
    selection = surveyed(tmp_path, files, convert_pickle=True).selection
    assert "bert/model.index.json" in selection.ignored


@pytest.mark.parametrize("shard", ["config.json", "two.bin"])
def test_an_index_that_names_another_kind_of_file_is_refused(tmp_path: Path, shard: str) -> None:
    files = {
        "bert/model.index.json": weight_map(a="one.safetensors", b=shard),
        "bert/one.safetensors": WEIGHTS,
        f"bert/{shard}": b"{}",
    }
    with pytest.raises(InvalidCheckpoint, match=f"names 'bert/{shard}'") as caught:
        surveyed(tmp_path, files, convert_pickle=True)
    assert "--exclude bert/model.index.json" in str(caught.value.hint)


def test_shards_are_found_in_folders_below_their_index(tmp_path: Path) -> None:
    source = single(tmp_path / "m")
    (source / "model.safetensors").unlink()
    names = list(TENSORS)
    files = {
        "shards/one.safetensors": weights({names[0]: TENSORS[names[0]]}),
        "shards/two.safetensors": weights({name: TENSORS[name] for name in names[1:]}),
    }
    held = dict.fromkeys(names, "shards/two.safetensors") | {names[0]: "shards/one.safetensors"}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": held}).encode()
    built = build_here(write(source, files), f"oci:{tmp_path}/out:v1", tmp_path)
    assert {file.path for file in built.records[0].files if file.role is Role.WEIGHT} == {
        "shards/one.safetensors",
        "shards/two.safetensors",
    }


@pytest.mark.parametrize(
    "content", [b"[]", b"{", b'{"weight_map": 3}', b'{"weight_map": {"a": 1}}']
)
def test_a_document_that_is_no_index_is_packed_like_any_other(
    tmp_path: Path, content: bytes
) -> None:
    found = surveyed(tmp_path, {"search_index.json": content, "model_index.json": b"{}"})
    assert found.selection.roles["search_index.json"] is Role.CONFIG
    assert found.indexes == ()


def test_an_index_cannot_name_files_outside(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match="outside"):
        surveyed(tmp_path, {"a/model.safetensors.index.json": weight_map(w="../../x.safetensors")})


def test_the_index_of_a_copy_is_left_out_with_it(tmp_path: Path) -> None:
    files = {
        "consolidated-00001-of-00001.safetensors": WEIGHTS,
        "consolidated.safetensors.index.json": weight_map(
            w="consolidated-00001-of-00001.safetensors"
        ),
    }
    assert surveyed(tmp_path, files).selection.weights == ["model.safetensors"]


def test_an_index_whose_shard_was_excluded_says_how_to_go_on(tmp_path: Path) -> None:
    index = "tower/model.safetensors.index.json"
    files = {
        index: weight_map(w="a.safetensors", v="b.safetensors"),
        "tower/a.safetensors": WEIGHTS,
        "tower/b.safetensors": weights({"v": (4,)}),
    }
    with pytest.raises(InvalidCheckpoint, match="matches --exclude") as caught:
        surveyed(tmp_path, files, exclude=("tower/b.safetensors",))
    assert f"--exclude {index}" in str(caught.value.hint)
    left = surveyed(tmp_path, files, exclude=("tower/b.safetensors", index)).selection
    assert "tower/a.safetensors" in left.weights


# Tensors in several files


def test_a_stale_copy_of_a_tensor_is_told_and_packed(tmp_path: Path) -> None:
    one, two = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        one: weights({"a": (4,), "b": (4,)}),
        two: weights({"b": (4,), "c": (4,)}),
    }
    index = "model.safetensors.index.json"
    good, bad = weight_map(a=one, b=two, c=two), weight_map(a=one, b=one, c=two)
    source = write(tmp_path / "m", {**files, index: good})
    build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    write(source, {index: bad})
    with pytest.raises(InvalidCheckpoint, match="vLLM loads the last") as caught:
        build_here(source, f"oci:{tmp_path}/out:v2", tmp_path)
    option, excluded = str(caught.value.hint).split()[-2:]
    assert option == "--exclude"
    build_here(source, f"oci:{tmp_path}/out:v3", tmp_path, BuildOptions(exclude=(excluded,)))


def halves(total: str) -> dict[str, bytes]:
    names = list(TENSORS)
    return {
        f"model-00001-of-{total}.safetensors": weights({name: TENSORS[name] for name in names[:2]}),
        f"model-00002-of-{total}.safetensors": weights({name: TENSORS[name] for name in names[2:]}),
    }


@pytest.mark.parametrize("more", [{"other.safetensors": weights(TENSORS)}, halves("00002")])
def test_a_tensor_in_files_that_are_no_set_can_be_left_out_as_the_hint_says(
    tmp_path: Path, more: Mapping[str, bytes]
) -> None:
    source = write(single(tmp_path / "m"), more)
    with pytest.raises(InvalidCheckpoint, match="both hold") as caught:
        build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    hint = shlex.split(str(caught.value.hint))
    ways = [after for word, after in pairwise(hint) if word == "--exclude"]
    assert len(ways) == 2
    for excluded in ways:
        build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, BuildOptions(exclude=(excluded,)))


# Pointers, folders of models and paths


@pytest.mark.parametrize(
    "path",
    ["tokenizer.json", "config.json", "model.safetensors", "2_Dense/model.safetensors", "merges.txt",
     "modeling.py", "README.md"],
)  # fmt: skip
def test_a_pointer_is_refused_whatever_it_stands_for(tmp_path: Path, path: str) -> None:
    source = write(single(tmp_path / "m"), {path: POINTER})
    with pytest.raises(InvalidCheckpoint, match=f"{path} is a Git LFS pointer") as caught:
        build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    assert "git lfs pull" in str(caught.value.hint)


@pytest.mark.parametrize(
    "folders",
    [
        ["models--o--m/snapshots/abc"], ["snapshots/abc"], ["hub/models--o--m/snapshots/abc"],
        ["checkpoint-500", "checkpoint-1000"], ["llama", "mistral"], ["fp16", "8bit", "4bit"], ["team/llama"],
    ],
)  # fmt: skip
def test_a_folder_of_models_is_refused_with_the_choice(tmp_path: Path, folders: list[str]) -> None:
    for folder in folders:
        single(tmp_path / "m" / folder)
    with pytest.raises(InvalidCheckpoint) as caught:
        survey(LocalSource(tmp_path / "m"))
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(folder in caught.value.message for folder in folders)
    # The hint names one of them, and with it the build goes on.
    assert any(f"{tmp_path / 'm'}/{folder}." in said for folder in folders)
    assert survey(LocalSource(tmp_path / "m" / folders[0])).selection.weights


@pytest.mark.parametrize(
    "root", ["model_index.json", "modules.json", "config.json", "config.yaml", "load.py"]
)
def test_a_model_that_is_assembled_of_folders_is_one(tmp_path: Path, root: str) -> None:
    single(tmp_path / "m/0_Transformer")
    write(tmp_path / "m", {root: b"{}"})
    assert survey(LocalSource(tmp_path / "m")).selection.weights


@pytest.mark.parametrize(
    "path",
    ["onnx.json//x.json", "/config.json", "a\nb.json", "a\x7f[b]*.json", "bad\udcff.json", "models/x.json",
     "a\\b.json", "tokenizer.json/x.json"],
)  # fmt: skip
def test_a_path_that_no_image_holds_can_be_left_out_as_the_hint_says(path: str) -> None:
    paths = ["model.safetensors", "tokenizer.json", path]
    with pytest.raises(InvalidCheckpoint) as caught:
        select(paths)
    hint = shlex.split(str(caught.value.hint))
    excluded = hint[hint.index("--exclude") + 1]
    left = select(paths, exclude=[excluded])
    assert len(left.roles) == 2
    assert left.weights == ["model.safetensors"]


# Variants


@pytest.mark.parametrize(
    ("quantization", "variant"),
    [
        (None, "bf16"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq-int4"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb-4bit"),
    ],
)
def test_a_published_variant_is_named_by_what_it_is(
    tmp_path: Path, quantization: Mapping[str, object] | None, variant: str
) -> None:
    config = CONFIG if quantization is None else CONFIG | {"quantization_config": quantization}
    source = write(single(tmp_path / "m"), {"config.json": json.dumps(config).encode()})
    built = build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    assert [record.variant for record in built.records] == [variant]
    assert set(built.publication.tags) == {"v1", "v1-modelpack"}


def test_mistrals_own_format_is_read_from_its_parameters(tmp_path: Path) -> None:
    parameters = {
        "dim": 8,
        "n_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 1,
        "hidden_dim": 16,
        "vocab_size": 16,
    }
    files = {
        "params.json": json.dumps(
            {**parameters, "quantization": {"qformat_weight": "fp8_e4m3"}}
        ).encode(),
        "consolidated.safetensors": weights(TENSORS),
        "tekken.json": b"{}",
    }
    built = build_here(write(tmp_path / "m", files), f"oci:{tmp_path}/out:v1", tmp_path)
    (record,) = built.records
    assert record.variant == "fp8"
    assert record.facts.architecture == "MistralForCausalLM"
    assert record.facts.kv_cache_bytes_per_token == 2 * 1 * 4 * 2
    assert set(files) == {file.path for file in record.files}


def test_a_quantization_in_a_file_of_its_own_counts(tmp_path: Path) -> None:
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    source = write(single(tmp_path / "m"), {"hf_quant_config.json": json.dumps(stated).encode()})
    (record,) = build_here(source, f"oci:{tmp_path}/out:v1", tmp_path).records
    assert record.variant == record.facts.quantization == "nvfp4"
