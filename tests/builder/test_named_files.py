"""Files that a model needs by whatever name: its tokenizer's, and those that its own documents name."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from builder.classify import select
from builder.sources.local import LocalSource
from builder.survey import survey
from modelimage.record import Role
from tests.builder.checkpoints import CONFIG, single, weights, write
from tests.builder.surveys import surveyed


@pytest.mark.parametrize(
    "name",
    [
        "tiktoken.model", "spm.model", "source.spm", "target.spm", "ice_text.model", "bpe.model", "spiece.model",
        "sentencepiece.bpe.model", "tekken.json", "tekken_240911.json", "qwen.tiktoken", "vocab.bpe", "bpe.codes",
        "prophetnet.tokenizer", "vocab-src.json", "entity_vocab.json", "rwkv_vocab_v20230424.txt", "dict.txt",
        "bpe_simple_vocab_16e6.txt.gz", "tokenizer.pkl", "tokenizer/spiece.model",
    ],
)  # fmt: skip
def test_a_vocabulary_is_packed_by_its_name(name: str) -> None:
    assert name in select([name]).roles


@pytest.mark.parametrize(
    ("document", "text", "role"),
    [
        ("tokenizer_config.json", '{"vocab_file": "own.dat"}', Role.TOKENIZER),
        ("tokenization_own.py", "NAMES = {'vocab_file': 'own.dat'}", Role.TOKENIZER),
        ("modeling_own.py", 'open(join(path, "own.dat"))', Role.CODE),
        ("config.json", '{"speakers": "voices/own.dat"}', Role.CODE),
    ],
)
def test_a_file_that_a_document_names_is_packed(
    tmp_path: Path, document: str, text: str, role: Role
) -> None:
    files = {"own.dat": b"x", "stray.dat": b"x", document: text.encode()}
    selection = surveyed(tmp_path, files).selection
    assert selection.roles["own.dat"] is role
    assert "stray.dat" in selection.ignored


def test_a_model_without_a_tokenizer_is_told_what_was_left_out(tmp_path: Path) -> None:
    assert surveyed(tmp_path / "with", {}).warnings == ()
    source = LocalSource(write(single(tmp_path / "m"), {"words.dat": b"x"}))
    (warning,) = survey(source, exclude=("tokenizer.json",)).warnings
    assert "no tokenizer" in warning
    assert "words.dat" in warning
    assert "tokenizer.json" in warning


@pytest.mark.parametrize(
    "beside", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
)
def test_files_beside_a_tokenizer_are_none(tmp_path: Path, beside: str) -> None:
    source = LocalSource(write(single(tmp_path / "m"), {beside: b"{}"}))
    (warning,) = survey(source, exclude=("tokenizer.json",)).warnings
    assert "no tokenizer" in warning


@pytest.mark.parametrize(
    ("document", "stated", "says"),
    [
        ("config.json", {"AutoModel": "modeling_own.Model"}, "no modeling_own.py"),
        ("config.json", {"AutoModel": "org/code--modeling_own.Model"}, "repository org/code"),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Slow", None]}, "no own.py"),
        ("config.json", {"AutoModel": "present.Model"}, None),
        ("config.json", "nonsense", None),
    ],
)
def test_code_that_an_auto_map_names_is_missed(
    tmp_path: Path, document: str, stated: object, says: str | None
) -> None:
    content = json.dumps({**CONFIG, "auto_map": stated}).encode()
    warnings = surveyed(tmp_path, {document: content, "present.py": b""}).warnings
    assert [says in each for each in warnings if says] == [True] * bool(says)
    assert len(warnings) == bool(says)


@pytest.mark.torch
def test_every_vocabulary_that_transformers_loads_is_packed() -> None:
    (package,) = importlib.util.find_spec("transformers").submodule_search_locations or ()  # type: ignore[union-attr]
    sources = Path(package, "models").glob("*/tokenization_*.py")
    stated = [
        block
        for source in sources
        for block in re.findall(r"VOCAB_FILES_NAMES = \{([^}]*)\}", source.read_text())
    ]
    names = {name for block in stated for name in re.findall(r':\s*"([^"]+)"', block)}
    assert len(names) > 10
    assert names - select(names).roles.keys() == set()


@pytest.mark.parametrize(
    ("document", "stated", "says"),
    [
        ("model_index.json", {"_class_name": "Pipeline", "vae": ["diffusers", "AutoencoderKL"]}, "nothing of vae/"),
        ("model_index.json", {"vae": [None, None], "unet": ["diffusers", "UNet"], "x": 3}, None),
        ("model_index.json", [], None),
        ("modules.json", [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}], "no weights of 2_Dense/"),
        ("modules.json", [{"path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}], None),
        ("modules.json", [{"path": "unet", "type": "sentence_transformers.models.Dense"}], None),
        ("modules.json", ["nonsense"], None),
    ],
)  # fmt: skip
def test_a_part_that_a_document_names_in_vain_is_told(
    tmp_path: Path, document: str, stated: object, says: str | None
) -> None:
    files = {document: json.dumps(stated).encode(), "unet/model.safetensors": weights({"w": (4,)})}
    warnings = surveyed(tmp_path, files).warnings
    assert [says in each for each in warnings if says] == [True] * bool(says)
    assert len(warnings) == bool(says)


@pytest.mark.parametrize(
    ("document", "stated", "says"),
    [
        ("config.json", CONFIG | {"text_model_id": "meta-llama/Llama-3.1-8B"}, "text_model_id from meta-llama/Llama"),
        ("config.json", CONFIG | {"audio_model_id": None, "text_model_id": ""}, None),
        ("adapter_config.json", {"r": 8, "use_dora": True}, "because of DoRA; merge it"),
        ("adapter_config.json", {"r": 8, "modules_to_save": ["embed_tokens", "lm_head"]}, "(embed_tokens, lm_head)"),
        ("adapter_config.json", {"r": 8, "init_lora_weights": "pissa_niter_4"}, "start with pissa_niter_4"),
        ("adapter_config.json", {"r": 8, "use_rslora": True, "modules_to_save": ["score"]}, None),
        ("adapter_config.json", {"r": 8, "init_lora_weights": "gaussian", "use_dora": False}, None),
        ("adapter_config.json", [], None),
    ],
)  # fmt: skip
def test_what_serving_a_model_will_lack_is_told(
    tmp_path: Path, document: str, stated: object, says: str | None
) -> None:
    warnings = surveyed(tmp_path, {document: json.dumps(stated).encode()}).warnings
    assert [says in each for each in warnings if says] == [True] * bool(says)
    assert len(warnings) == bool(says)
