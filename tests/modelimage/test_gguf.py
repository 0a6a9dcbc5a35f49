"""GGUF: the files that belong together, and the facts of a file's metadata."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.gguf import GgufFacts, GgufFiles, gguf_facts, gguf_files
from modelimage.model_facts import file_facts
from modelimage.ranges import ByteRange


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def value(of: object) -> bytes:
    """A value with its type: strings, lists of strings or of integers, else 32-bit integers."""
    if isinstance(of, str):
        return struct.pack("<I", 8) + text(of)
    if isinstance(of, list) and all(isinstance(each, str) for each in of):
        return struct.pack("<IIQ", 9, 8, len(of)) + b"".join(map(text, of))
    if isinstance(of, list):
        return struct.pack(f"<IIQ{len(of)}i", 9, 5, len(of), *of)
    return struct.pack("<II", 4, of)


def gguf(architecture: str, own: Mapping[str, Any], *, end: bytes = b"") -> bytes:
    keys = {f"{architecture}.{key}": each for key, each in own.items()}
    known = {"general.architecture": architecture, "general.tags": ["chat", "tiny"], **keys}
    known |= {"tokenizer.ggml.tokens": ["a", "b"]}
    body = b"".join(text(key) + value(each) for key, each in known.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(known)) + body + end


LLAMA = {
    "context_length": 8192, "block_count": 32, "embedding_length": 4096, "attention.head_count": 32,
    "attention.head_count_kv": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (LLAMA, 2 * 32 * 8 * 128 * 2),
        ({k: v for k, v in LLAMA.items() if k != "attention.head_count_kv"}, 2 * 32 * 32 * 128 * 2),
        ({**LLAMA, "attention.key_length": 256, "attention.value_length": 256}, 2 * 32 * 8 * 256 * 2),
        # Recurrent layers have no heads (Jamba, Granite 4, LFM2), or attention comes every fourth layer (Qwen3-Next).
        ({**LLAMA, "attention.head_count_kv": [0, 0, 0, 8] * 8}, 2 * 8 * 8 * 128 * 2),
        ({**LLAMA, "full_attention_interval": 4}, 2 * 8 * 8 * 128 * 2),
        ({**LLAMA, "attention.head_count": 0, "attention.head_count_kv": 0}, 0),
        # Latent attention: one head of keys, of which the values are a part.
        (
            {
                **LLAMA, "attention.head_count_kv": 1, "attention.key_length": 576,
                "attention.value_length": 512, "attention.key_length_mla": 192,
            },
            32 * 576 * 2,
        ),
        ({"block_count": 32}, None),
        ({"attention.head_count": 8}, None),
    ],
)  # fmt: skip
def test_the_cache_of_a_token(own: Mapping[str, Any], expected: int | None) -> None:
    assert gguf_facts(gguf("arch", own)).cache_bytes == expected


def test_metadata_is_read_up_to_the_tokenizer() -> None:
    whole = gguf("llama", LLAMA, end=bytes(100))
    facts = gguf_facts(whole)
    assert facts == GgufFacts("llama", 8192, 2 * 32 * 8 * 128 * 2)
    assert gguf_facts(whole[: whole.index(b"tokenizer") + 3]) == facts


@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_bytes_are_read(noise: bytes, cut: int) -> None:
    gguf_facts(noise)
    gguf_facts(b"GGUF" + noise)
    gguf_facts(gguf("llama", LLAMA)[:cut] + noise)


@pytest.mark.parametrize(
    ("paths", "parts", "projector"),
    [
        (["m.gguf", "mmproj-m-f16.gguf"], ("m.gguf",), "mmproj-m-f16.gguf"),
        (["a.Q8_0.gguf", "a.Q4_K_M.gguf", "a.Q2_K.gguf"], ("a.Q4_K_M.gguf",), None),
        (["a.Q8_0.gguf", "a.Q2_K.gguf"], ("a.Q8_0.gguf",), None),
        (["a-IQ3_M.gguf", "a-Q2_K.gguf"], ("a-IQ3_M.gguf",), None),
        (
            ["q8/a-Q8_0.gguf", "q4/a-Q4_K_M-00002-of-00002.gguf", "q4/a-Q4_K_M-00001-of-00002.gguf"],
            ("q4/a-Q4_K_M-00001-of-00002.gguf", "q4/a-Q4_K_M-00002-of-00002.gguf"),
            None,
        ),
        (["model.gguf", "model.mmproj", "adapter.gguf"], ("model.gguf",), "model.mmproj"),
        (["adapter.gguf"], ("adapter.gguf",), None),
        (["m.gguf", "mmproj-BF16.gguf", "mmproj-Q8_0.gguf", "imatrix.gguf"], ("m.gguf",), "mmproj-BF16.gguf"),
    ],
)  # fmt: skip
def test_one_quantization_with_all_its_parts(
    paths: list[str], parts: tuple[str, ...], projector: str | None
) -> None:
    adapters = tuple(path for path in paths if path.startswith("adapter") and path not in parts)
    assert gguf_files(paths) == GgufFiles(parts, projector, adapters)
    assert gguf_files(reversed(paths)) == GgufFiles(parts, projector, adapters)


def test_without_a_model_there_is_none() -> None:
    assert gguf_files(["mmproj-m.gguf", "README.md"]) is None


def test_only_what_is_served_counts() -> None:
    files = {
        "a.Q4_K_M.gguf": gguf("llama", LLAMA, end=bytes(1000)), "a.Q8_0.gguf": bytes(5000),
        "mmproj-a.gguf": bytes(300),
    }  # fmt: skip
    sizes = {path: len(data) for path, data in files.items()}

    def read(path: str, part: ByteRange) -> bytes:
        return files[path][part.start : part.stop]

    facts = file_facts(sizes, read)
    assert facts.weight_bytes == sizes["a.Q4_K_M.gguf"] + 300
    assert facts.context_length == 8192
    cache = facts.kv_cache_bytes_per_token
    assert facts.gpu_memory_bytes == facts.weight_bytes + (1 << 30) + 8192 * cache


@pytest.mark.torch
def test_what_the_reference_library_writes_is_read(tmp_path: Path) -> None:
    from gguf import GGUFWriter  # noqa: PLC0415 - installed with vLLM only

    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "qwen3")
    writer.add_context_length(40960)
    writer.add_block_count(4)
    writer.add_embedding_length(256)
    writer.add_head_count(8)
    writer.add_head_count_kv([2, 2, 0, 2])
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert gguf_facts(path.read_bytes()) == GgufFacts("qwen3", 40960, 6 * 2 * 64 * 2)
