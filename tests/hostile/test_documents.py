"""Documents of which one value is another: each parser answers with its own error, at once, whatever the value is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest

from cache_agent.mounter.orders import Order, Report
from cache_agent.peers.values import Have
from cache_agent.store.journal import ForeignPullState
from cache_agent.store.manifests import RepositoryEntry
from cache_agent.store.values import ImageOrigin
from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import WeightyardError
from modelimage.foreign import DerivedRecord, parse_record
from modelimage.foreign.contents import LayerContents
from modelimage.layout import referenced
from modelimage.model_facts import file_facts
from modelimage.record import Record
from modelimage.registry.answers import parse_errors
from modelimage.registry.auth import parse_token
from modelimage.registry.credentials import DockerConfig
from modelimage.safetensors import build_header, parse_header
from tests.faults.cluster import places
from tests.modelimage.test_record import small_record

DIGEST: Final = str(Digest.of(b"x"))
VALUES: Final = (
    None, True, -1, 0, 0.5, 10**12, 10**400, -(10**400), 1e308, float("inf"), float("nan"), "", "x", "\u0000", "\ud800",
    "a\r\nb: c", "../../x", "x" * 10_000, "1" * 5000, [], {}, [[]], [None], {"a": None}, [10**400], {"": []}, "é",
    "e\u0301",
)  # fmt: skip
HEADER: Final = build_header({"a.weight": ("BF16", (8, 8))}, {})
DESCRIPTOR: Final = {
    "mediaType": mediatypes.OCI_LAYER_TAR, "digest": DIGEST, "size": 1, "annotations": {"a": "b"},
    "platform": {"os": "linux", "architecture": "amd64"}, "artifactType": "a/b",
}  # fmt: skip
CONTENTS: Final = {
    "members": [["a", "file", 1, 512, ""]],
    "files": [{"member": 0, "sha256": "0" * 64, "blake3": ["0" * 64]}],
}
CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_attention_heads": 8,
    "num_key_value_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 2048, "vocab_size": 100,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "model_max_length": 10, "head_dim": 8, "sliding_window": 5,
    "layer_types": ["full_attention"] * 4, "quantization_config": {"quant_method": "gptq", "bits": 4},
    "kv_lora_rank": 8, "qk_rope_head_dim": 4, "num_experts": 4, "pad_token_id": 1, "torch_dtype": "bfloat16",
    "layers_block_type": ["attention"], "hybrid_override_pattern": "M*", "full_attention_interval": 4,
    "block_configs": [{}], "attention_chunk_size": 8, "state_size": 4, "mamba_d_state": 4, "linear_num_value_heads": 4,
    "is_encoder_decoder": True, "rope_parameters": {"full": {"rope_type": "yarn", "factor": 2.0}},
    "vision_config": {"hidden_size": 8}, "position_embedding_type": "absolute", "n_head": 8, "ffn_config": {},
    "attn_config": {"kv_n_heads": 2}, "index_topk": 4, "compression_config": {"format": "x"},
    "num_attention_groups": 2, "attn_layer_indices": [1], "mlp_only_layers": [1],
}  # fmt: skip


def facts(data: bytes) -> object:
    files = {"config.json": data, "model.safetensors": HEADER + bytes(128)}
    sizes = {name: len(each) for name, each in files.items()}
    return file_facts(sizes, lambda name, wanted: files[name][wanted.start : wanted.stop])


PARSERS: Final[Mapping[str, tuple[object, Callable[[bytes], object]]]] = {
    "record": (json.loads(small_record().to_bytes()), Record.parse),
    "derived record": (
        {
            "schema": "weightyard.dev/derived/v1", "manifest": DIGEST, "kind": "modelpack", "chunkSize": 32 << 20,
            "layers": [{"descriptor": DESCRIPTOR, "parts": [{"literal": "YQ=="}], "contents": CONTENTS}], "files": [],
        },
        DerivedRecord.parse,
    ),
    "record of any kind": (json.loads(small_record().to_bytes()), parse_record),
    "descriptor": (DESCRIPTOR, lambda data: Descriptor.from_json(canonical.parse(data, what="it"))),
    "contents": (CONTENTS, lambda data: LayerContents.parse(canonical.parse(data, what="it"))),
    "manifest": (
        {"config": DESCRIPTOR, "layers": [DESCRIPTOR], "manifests": [DESCRIPTOR], "blobs": [DESCRIPTOR]},
        lambda data: referenced(canonical.parse(data, what="it")),
    ),
    "journal": (
        {
            "schema": "weightyard.dev/harvest/v1", "manifest": DIGEST,
            "done": {DIGEST: CONTENTS}, "arriving": {DIGEST: 3},
        },
        lambda data: ForeignPullState.parse(data).staged_files(),
    ),
    "entry of the manifest cache": (
        {"repository": "a/b", "documents": {"a": "b"}, "tags": {"a": "b"}, "public": 5},
        RepositoryEntry.parse,
    ),
    "publish record": (
        {
            "image": "a.test/b:v1", "repository": "a.test/b", "root": DIGEST, "manifest": DIGEST, "variant": "bf16",
            "requestedVariant": None,
        },
        ImageOrigin.parse,
    ),
    "peer's answer": (
        {"chunks": 4, "have": "f", "coming": "0", "received": 5, "zone": "a"},
        lambda data: Have.parse(data).complete,
    ),
    "token": ({"token": "t", "expires_in": 60, "issued_at": "x"}, lambda data: parse_token(data, 0.0)),
    "errors": ({"errors": [{"code": "DENIED", "message": "no", "detail": {}}]}, parse_errors),
    "credentials": (
        {
            "auths": {"a.test": {"auth": "YTpi", "username": "a", "identitytoken": "x"}},
            "credHelpers": {"a": "b"}, "credsStore": "c",
        },
        lambda data: DockerConfig.parse(data, what="it"),
    ),
    "tensors": (
        {"a": {"dtype": "BF16", "shape": [8, 8], "data_offsets": [0, 128]}, "__metadata__": {"a": "b"}},
        lambda data: parse_header(data, file_size=8 + len(data) + 128, name="it"),
    ),
    "configuration": (CONFIG, facts),
    **{
        f"configuration of {kind}": ({**CONFIG, "model_type": kind}, facts)
        for kind in ("deepseek_v3", "nemotron_h", "roberta")
    },
    "order": ({"op": "bind", "target": "/x", "key": "0" * 64}, Order.parse),
    "report": ({"key": None, "changed": True, "error": "", "message": ""}, Report.parse),
}  # fmt: skip


def spoiled(document: Any) -> Iterator[bytes]:
    """The document with each of its values as each of VALUES, and texts that are none."""
    for number, _ in enumerate(places(document)):
        for value in VALUES:
            made = copy.deepcopy(document)
            container, key = list(places(made))[number]
            container[key] = value
            yield json.dumps(made).encode()
    for text in (
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5000,
        "1e999",
        "NaN",
        "null",
        "[]",
        '"',
        "\x00",
        "{",
        "",
    ):
        yield text.encode()
    yield b"\xff\xfe{}"


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_refuses_with_its_own_error(name: str) -> None:
    good, parse = PARSERS[name]
    for data in spoiled(good):
        try:
            parse(data)
        except WeightyardError:
            pass
        except Exception as error:
            error.add_note(f"{name}: {data[:300]!r}")
            raise


@pytest.mark.parametrize("name", set(PARSERS) - {"derived record"})
def test_the_documents_themselves_are_right(name: str) -> None:
    good, parse = PARSERS[name]
    parse(
        json.dumps(good).encode()
        if name not in ("record", "record of any kind")
        else canonical.to_bytes(good)
    )
