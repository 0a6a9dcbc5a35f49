"""Pickle weights become safetensors with the same tensors, and nothing in them runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builder.convert import convert, converted_name, converted_names, write_index
from modelimage.checkpoint_files import INDEX, WeightIndex, check_shards, read_header, read_json
from modelimage.errors import InvalidCheckpoint, UnsafePickle

DTYPES = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.float8_e4m3fn,
]  # fmt: skip


def converted(tmp_path: Path, state: object, *, tied: bool = False) -> dict[str, torch.Tensor]:
    source, target = tmp_path / "weights.bin", tmp_path / "out" / "weights.safetensors"
    torch.save(state, source)
    convert(source, target, name="weights.bin", tied=tied)
    read_header(target, name=target.name)
    return load_file(target)


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype
        and ours[name].shape == theirs[name].shape
        and torch.equal(ours[name].view(torch.uint8), theirs[name].contiguous().view(torch.uint8))
        for name in ours
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_keep_their_bytes(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"b": torch.arange(24).reshape(4, 6).to(dtype), "a": torch.ones(3).to(dtype)}
    assert equal(converted(tmp_path, state), state)


def test_odd_tensors_keep_their_values(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {
        "transposed": base.t(),
        "sliced": base[:, 1:3],
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 4),
        "byte": torch.ones(3, dtype=torch.uint8),
        "twin": base,
    }
    found = converted(tmp_path, state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_nested_state_dict_is_found(tmp_path: Path) -> None:
    state = {"w": torch.ones(2)}
    assert equal(converted(tmp_path, {"state_dict": state, "epoch": 3}), state)


def test_the_output_layer_is_left_out_only_where_it_is_tied(tmp_path: Path) -> None:
    embeddings = torch.ones(4, 2)
    shared = {"model.embed_tokens.weight": embeddings, "lm_head.weight": embeddings}
    assert list(converted(tmp_path, shared, tied=True)) == ["model.embed_tokens.weight"]
    assert equal(converted(tmp_path, shared), shared)
    apart = {**shared, "lm_head.weight": embeddings.clone()}
    assert equal(converted(tmp_path, apart, tied=True), apart)


def test_the_old_file_format_is_read(tmp_path: Path) -> None:
    source, target = tmp_path / "old.bin", tmp_path / "old.safetensors"
    torch.save({"w": torch.ones(2)}, source, _use_new_zipfile_serialization=False)
    convert(source, target, name="old.bin", tied=False)
    assert list(load_file(target)) == ["w"]


class RunsCode:
    """What a hostile pickle holds: a call."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self._path),))


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, plain: bool) -> None:
    source, trace = tmp_path / "evil.bin", tmp_path / "it-ran"
    state = {"w": RunsCode(trace)}
    if plain:
        source.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, source)
    with pytest.raises(UnsafePickle):
        convert(source, tmp_path / "out.safetensors", name="evil.bin", tied=False)
    assert not trace.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("damage", [b"", b"not a pickle", b"PK\x03\x04 broken zip"])
def test_a_file_that_is_no_pickle_is_refused(tmp_path: Path, damage: bytes) -> None:
    source = tmp_path / "broken.bin"
    source.write_bytes(damage)
    with pytest.raises(InvalidCheckpoint):
        convert(source, tmp_path / "out.safetensors", name="broken.bin", tied=False)


@pytest.mark.parametrize("state", [{"step": 7}, [1], {}, {1: torch.ones(1)}])
def test_a_pickle_without_named_tensors_is_refused(tmp_path: Path, state: object) -> None:
    with pytest.raises(InvalidCheckpoint):
        converted(tmp_path, state)


def test_the_same_pickle_gives_the_same_bytes(tmp_path: Path) -> None:
    state = {"b": torch.ones(3), "a": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "x.bin")
    for name in ("1", "2"):
        convert(tmp_path / "x.bin", tmp_path / name, name="x.bin", tied=False)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_names_become_those_of_the_hub() -> None:
    assert converted_name("pytorch_model.bin") == "model.safetensors"
    assert converted_name("pytorch_model-00001-of-00002.bin") == "model-00001-of-00002.safetensors"
    assert converted_name("sub/adapter_model.bin") == "sub/adapter_model.safetensors"
    with pytest.raises(InvalidCheckpoint, match="both become"):
        converted_names(("a.bin", "a.pt"))


def test_the_index_of_converted_shards_is_right(tmp_path: Path) -> None:
    shards = []
    for n in (1, 2):
        torch.save({f"t{n}": torch.ones(n)}, tmp_path / f"{n}.bin")
        shards.append(f"{n}.safetensors")
        convert(tmp_path / f"{n}.bin", tmp_path / shards[-1], name=f"{n}.bin", tied=False)
    write_index(tmp_path, INDEX, shards)
    document = read_json(tmp_path / INDEX, name=INDEX)
    assert document["metadata"]["total_size"] == 3 * 4
    check_shards(
        WeightIndex.parse(document), {s: read_header(tmp_path / s, name=s) for s in shards}
    )
