"""The rules between weight files, and what the record says of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelimage.checkpoint_files import (
    WeightIndex,
    check_present,
    check_shards,
    check_unique,
    read_header,
    read_json,
    unlisted_weights,
)
from modelimage.errors import InvalidCheckpoint
from modelimage.model_facts import model_facts
from modelimage.safetensors import Header
from tests.builder.checkpoints import CONFIG, TENSORS, sharded, single, weights, write

INDEX = WeightIndex({"a.safetensors": frozenset({"x", "y"}), "b.safetensors": frozenset({"z"})})


def headers(directory: Path, files: dict[str, list[str]]) -> dict[str, Header]:
    found = {}
    for name, tensors in files.items():
        write(directory, {name: weights(dict.fromkeys(tensors, (4,)))})
        found[name] = read_header(directory / name, name=name)
    return found


def test_an_index_is_grouped_by_shard() -> None:
    index = WeightIndex.parse(
        {"weight_map": {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    )
    assert index == INDEX


@pytest.mark.parametrize(
    "document", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"x": 1}}]
)
def test_a_malformed_index_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(InvalidCheckpoint, match="weight_map"):
        WeightIndex.parse(document)


def test_a_missing_shard_is_named() -> None:
    with pytest.raises(InvalidCheckpoint, match=r"names 'b.safetensors', which isn't there"):
        check_present(INDEX, ["a.safetensors"])


def test_a_weight_file_beside_the_index_is_found() -> None:
    paths = ["a.safetensors", "b.safetensors", "c.safetensors", "sub/d.safetensors"]
    assert unlisted_weights(INDEX, paths) == ["c.safetensors"]


def test_shards_that_hold_what_the_index_says_pass(tmp_path: Path) -> None:
    check_shards(INDEX, headers(tmp_path, {"a.safetensors": ["x", "y"], "b.safetensors": ["z"]}))


def test_a_tensor_that_only_the_index_knows_is_refused(tmp_path: Path) -> None:
    found = headers(tmp_path, {"a.safetensors": ["x"], "b.safetensors": ["z"]})
    with pytest.raises(InvalidCheckpoint, match=r"lists tensor 'y' in a.safetensors"):
        check_shards(INDEX, found)


def test_a_tensor_that_only_a_shard_knows_is_refused(tmp_path: Path) -> None:
    found = headers(tmp_path, {"a.safetensors": ["x", "y", "extra"], "b.safetensors": ["z"]})
    with pytest.raises(InvalidCheckpoint, match="holds tensor 'extra'") as caught:
        check_shards(INDEX, found)
    assert "--exclude" in str(caught.value.hint)


def test_a_tensor_in_two_files_is_refused_but_not_in_two_folders(tmp_path: Path) -> None:
    twice = headers(tmp_path, {"a.safetensors": ["x"], "b.safetensors": ["x"]})
    with pytest.raises(InvalidCheckpoint, match="both hold tensor 'x'"):
        check_unique(twice)
    check_unique(
        {"a.safetensors": twice["a.safetensors"], "sub/a.safetensors": twice["b.safetensors"]}
    )


def test_json_that_is_none_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"list.json": b"[]", "broken.json": b"{", "deep.json": b"[" * 100_000})
    for name in ("list.json", "broken.json", "deep.json"):
        with pytest.raises(InvalidCheckpoint, match=name):
            read_json(tmp_path / name, name=name)


def test_the_facts_of_a_model(tmp_path: Path) -> None:
    single(tmp_path)
    header = read_header(tmp_path / "model.safetensors", name="model.safetensors")
    facts = model_facts(CONFIG, [header])
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.parameters == 16 * 8 + 8 * 8 + 16 * 8 + 8
    assert facts.weight_bytes == 2 * facts.parameters
    assert facts.dtype == "bfloat16"
    assert facts.context_length == 64
    assert facts.kv_cache_bytes_per_token == 2 * 1 * 1 * 4 * 2
    assert facts.gpu_memory_bytes > facts.weight_bytes


def test_shards_give_the_same_facts_as_one_file(tmp_path: Path) -> None:
    one, two = single(tmp_path / "one"), sharded(tmp_path / "two")
    of = {
        directory: model_facts(
            CONFIG,
            [read_header(path, name=path.name) for path in sorted(directory.glob("*.safetensors"))],
        )
        for directory in (one, two)
    }
    assert of[one] == of[two]
    assert len(TENSORS) == 4


def test_packed_integers_are_named_by_their_real_width(tmp_path: Path) -> None:
    write(tmp_path, {"q.safetensors": weights({"layer.weight_packed": (8, 4)}, "I32")})
    header = read_header(tmp_path / "q.safetensors", name="q.safetensors")
    quantization = {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    facts = model_facts({"quantization_config": quantization}, [header])
    assert facts.dtype == "int4"
    assert facts.parameters == 8 * 4 * 8


def test_a_model_without_config_has_unknown_facts(tmp_path: Path) -> None:
    single(tmp_path)
    header = read_header(tmp_path / "model.safetensors", name="model.safetensors")
    facts = model_facts({"architectures": "no list"}, [header])
    assert facts.architecture == ""
    assert facts.context_length == 0
    assert facts.parameters > 0
