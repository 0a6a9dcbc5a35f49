"""A model's description, made of what its image says while the Hub is away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cache_agent.servers.hub.description import CARD, CONFIG, description
from cache_agent.servers.hub.repo_files import RepoFiles, git_oid
from modelimage.digest import Digest
from modelimage.lfs_pointers import is_pointer
from modelimage.record import ModelFacts
from tests.cache_agent.servers.published import model_files, records_of

RECORD = records_of(model_files(1), source="hf://org/m", revision="ab" * 20)[0]
DECODER = (
    b'{"model_type": "mistral", "architectures": ["MistralForCausalLM"], '
    b'"quantization_config": {"quant_method": "awq", "bits": 4}}'
)
LLAMA = b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'


def card(text: str) -> bytes:
    return f"---\n{text}\n---\n# Model\n".encode()


def test_the_card_and_the_configuration_are_told() -> None:
    base = "base_model: mistralai/M-7B\nbase_model_relation: quantized"
    front = f"license: apache-2.0\nlanguage: [en, de]\ntags:\n- chat\n{base}"
    said = description(RECORD, {CARD: card(front), CONFIG: DECODER})
    assert said["tags"] == [
        "transformers", "safetensors", "mistral", "text-generation", "en", "de", "chat",
        "base_model:mistralai/M-7B", "license:apache-2.0", "base_model:quantized:mistralai/M-7B",
    ]  # fmt: skip
    assert (said["library_name"], said["pipeline_tag"]) == ("transformers", "text-generation")
    assert said["config"]["quantization_config"] == {"quant_method": "awq"}
    assert said["cardData"]["language"] == ["en", "de"]


def test_a_card_decides_before_the_configuration() -> None:
    front = card("library_name: vllm\npipeline_tag: text-ranking")
    said = description(RECORD, {CARD: front, CONFIG: LLAMA})
    assert (said["library_name"], said["pipeline_tag"]) == ("vllm", "text-ranking")


def test_a_pooling_model_embeds() -> None:
    pooling = replace(RECORD, facts=ModelFacts(pooling=True))
    assert description(pooling, {CONFIG: LLAMA})["pipeline_tag"] == "feature-extraction"


BOMB = "\n".join(
    [
        "a0: &a0 [x, x, x, x, x, x, x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)),
        "tags: *a11",
    ]
)


@pytest.mark.parametrize(
    "front", [BOMB, "tags: {a: b}", "license: [[x]]", "- list", "a: b: c", "tags: ['" + "x" * 999 + "']"]
)  # fmt: skip
def test_a_hostile_card_states_nothing(front: str) -> None:
    assert "cardData" not in description(RECORD, {CARD: card(front)})


@pytest.mark.parametrize(
    "config",
    [b"", b"[]", b"{", b'{"model_type": 7, "architectures": [7]}', b'{"architectures": {}}',
     b'{"model_type": NaN}', b'{"architectures": []}', b"[" * 100_000],
)  # fmt: skip
def test_a_hostile_configuration_states_nothing(config: bytes) -> None:
    assert "library_name" not in description(RECORD, {CONFIG: config})


def test_files_have_the_ids_that_git_and_the_hub_give_them() -> None:
    files = model_files(1)
    by_digest = {Digest.of(data): data for data in files.values()}
    listing = RepoFiles.from_record(RECORD, lambda digest: git_oid(by_digest[digest]))
    assert listing is not None
    small, weights = listing.files["config.json"], listing.files["model.safetensors"]
    assert (small.sha256, small.etag) == (None, git_oid(files["config.json"]))
    assert is_pointer(weights.pointer)
    assert (weights.oid, weights.etag) == (
        git_oid(weights.pointer),
        Digest.of(files["model.safetensors"]).hex,
    )
