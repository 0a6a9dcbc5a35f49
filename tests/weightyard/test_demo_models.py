"""The checkpoints that the demonstration, the tests and the benchmarks run on."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelimage.safetensors import LENGTH_BYTES, Header, parse_header
from tests.synthetic import architecture_of, split, synthetic_checkpoint, tensor_shapes
from weightyard.demo.safetensors_file import bf16_size, to_bf16, write_bf16
from weightyard.demo.smollm import README, default_cache, smollm2_checkpoint

MODEL_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
MEGABYTE = 1_000_000


def header_of(path: Path) -> Header:
    data = path.read_bytes()
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    return parse_header(
        data[LENGTH_BYTES : LENGTH_BYTES + length], file_size=len(data), name=path.name
    )


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir())}


@given(arrays.arrays(np.float32, 64, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_rounding_to_bf16_picks_the_nearest(values: np.ndarray) -> None:
    bits = to_bf16(values)
    error = np.abs(from_bf16(bits).astype(np.float64) - values)
    for neighbour in (bits - np.uint16(1), bits + np.uint16(1)):
        other = from_bf16(neighbour).astype(np.float64)
        assert np.all((error <= np.abs(other - values)) | ~np.isfinite(other))


def test_ties_round_to_the_even_mantissa() -> None:
    halfway = np.array([0x3F808000, 0x3F818000], dtype=np.uint32).view(np.float32)
    assert to_bf16(halfway).tolist() == [0x3F80, 0x3F82]


def test_bf16_values_survive_rounding_unchanged() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    finite = every[np.isfinite(from_bf16(every))]
    assert np.array_equal(to_bf16(from_bf16(finite)), finite)


def test_data_that_does_not_fill_the_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 bytes of data for tensors of 6 bytes"):
        write_bf16(tmp_path / "x.safetensors", {"w": (3,)}, [np.zeros(2, np.uint16)])


@given(st.integers(min_value=MEGABYTE, max_value=10**12))
def test_an_architecture_takes_about_the_bytes_asked_for(total: int) -> None:
    assert math.isclose(bf16_size(tensor_shapes(architecture_of(total))), total, rel_tol=0.15)


@given(st.integers(min_value=1, max_value=3 * MEGABYTE))
def test_shards_hold_every_tensor_once_in_order(shard_bytes: int) -> None:
    shapes = tensor_shapes(architecture_of(2 * MEGABYTE))
    shards = split(shapes, shard_bytes)
    assert [name for shard in shards for name in shard] == list(shapes)
    assert all(len(shard) == 1 or bf16_size(shard) <= shard_bytes for shard in shards)


def test_a_synthetic_checkpoint_is_the_same_every_time(tmp_path: Path) -> None:
    first = synthetic_checkpoint(tmp_path / "a", total_bytes=MEGABYTE, seed=7)
    second = synthetic_checkpoint(tmp_path / "b", total_bytes=MEGABYTE, seed=7)
    other = synthetic_checkpoint(tmp_path / "c", total_bytes=MEGABYTE, seed=8)

    assert digests(first) == digests(second)
    differing = {name for name, digest in digests(first).items() if digests(other)[name] != digest}
    assert differing == {"model.safetensors"}


def test_a_sharded_checkpoint_has_a_true_index(tmp_path: Path) -> None:
    out = synthetic_checkpoint(tmp_path, total_bytes=MEGABYTE, shard_bytes=MEGABYTE // 4)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = {
        t.name: path.name for path in out.glob("*.safetensors") for t in header_of(path).tensors
    }

    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == sum(
        header_of(p).data_size for p in out.glob("*.safetensors")
    )
    assert len(set(found.values())) >= 4


def test_synthetic_weights_are_finite_and_never_repeat(tmp_path: Path) -> None:
    out = synthetic_checkpoint(tmp_path, total_bytes=MEGABYTE)
    path = out / "model.safetensors"
    data = path.read_bytes()[header_of(path).data_offset :]
    magnitudes = np.abs(from_bf16(np.frombuffer(data, np.uint16)))
    blocks = [data[i : i + 4096] for i in range(0, len(data), 4096)]

    assert magnitudes.min() >= 2**-7
    assert magnitudes.max() < 2**-3
    assert len(set(blocks)) == len(blocks)


def test_the_cache_follows_the_environment() -> None:
    assert default_cache({"WEIGHTYARD_CACHE": "/data"}) == Path("/data/models")
    assert default_cache({}) == Path.home() / ".cache/weightyard/models"


@pytest.mark.vllm  # needs the model's package, which comes with vLLM's set-up
@pytest.mark.slow
class TestSmolLM2:
    def test_an_outdated_checkpoint_is_replaced_by_the_known_bytes(
        self, tmp_path: Path, smollm2: Path
    ) -> None:
        outdated = tmp_path / smollm2.name
        outdated.mkdir()
        (outdated / "README.md").write_text("an older layout")
        (outdated / "stray.bin").write_bytes(b"")
        fresh = smollm2_checkpoint(tmp_path)

        assert digests(fresh)["model.safetensors"] == MODEL_SHA256
        assert digests(fresh) == digests(smollm2)
        assert list(tmp_path.iterdir()) == [outdated]

    def test_a_finished_checkpoint_is_reused(self, smollm2: Path) -> None:
        before = (smollm2 / "model.safetensors").stat()
        assert smollm2_checkpoint(smollm2.parent) == smollm2
        assert (smollm2 / "model.safetensors").stat() == before

    def test_the_licence_is_stated(self, smollm2: Path) -> None:
        assert "Apache License" in (smollm2 / "LICENSE").read_text()
        assert (smollm2 / "README.md").read_text() == README
        assert "license: apache-2.0" in README

    def test_the_tokenizer_splits_digits_and_keeps_every_text(self, smollm2: Path) -> None:
        from transformers import AutoTokenizer  # noqa: PLC0415 (installed with vLLM only)

        tokenizer = AutoTokenizer.from_pretrained(smollm2)
        text = "In 2024, naïve café 你好\n\tx*3.14<|im_end|>"
        tokens = tokenizer(text)["input_ids"]

        assert tokenizer.decode(tokens) == text
        assert tokenizer.convert_ids_to_tokens(tokens)[:6] == ["In", "Ġ", "2", "0", "2", "4"]
        assert tokens[-1] == tokenizer.eos_token_id == 2
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert "<|im_start|>user\nhi<|im_end|>" in chat
