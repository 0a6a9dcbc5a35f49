"""Makes tiny random models of many families with transformers, in the layout in which their kind is published.

    python tests/families/checkpoints.py DIR [NAME...]

The same call writes the same bytes. Weights are large enough that layers matter to the answer: with usual
initializations a random model repeats its last token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

WORDS: Final = 256
_ENCODER: Final[Mapping[str, Any]] = {
    "vocab_size": WORDS, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
_DECODER: Final = {**_ENCODER, "num_key_value_heads": 1}
_LORA_RANK: Final = 32


def decoder(directory: Path) -> None:
    """Llama in several shards with an index."""
    config = transformers.LlamaConfig(**_DECODER)
    _save(transformers.LlamaForCausalLM(config), directory, max_shard_size="200KB")


def sliding(directory: Path) -> None:
    """Gemma 3: layers with and without a sliding window, a head size that isn't hidden / heads."""
    config = transformers.Gemma3TextConfig(**_DECODER, head_dim=128, sliding_window=64)
    _save(transformers.Gemma3ForCausalLM(config), directory)


def mixture(directory: Path) -> None:
    """Qwen 3's mixture of experts."""
    config = transformers.Qwen3MoeConfig(
        **_DECODER, head_dim=64, moe_intermediate_size=128, num_experts=4, num_experts_per_tok=2
    )
    _save(transformers.Qwen3MoeForCausalLM(config), directory)


def latent(directory: Path) -> None:
    """DeepSeek V2: latent attention; experts, one of them shared, behind a dense layer."""
    config = transformers.DeepseekV2Config(
        **_ENCODER, num_key_value_heads=2, kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128,
        qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
        moe_intermediate_size=128, first_k_dense_replace=1, n_group=1, topk_group=1,
    )  # fmt: skip
    _save(transformers.DeepseekV2ForCausalLM(config), directory)


def mamba2(directory: Path) -> None:
    """Granite 4: Mamba 2 and attention in turn."""
    config = transformers.GraniteMoeHybridConfig(
        **_DECODER, layer_types=["mamba", "attention"], num_local_experts=0, shared_intermediate_size=256,
        mamba_n_heads=4, mamba_d_head=64, mamba_d_state=64, mamba_n_groups=1, position_embedding_type="nope",
    )  # fmt: skip
    _save(transformers.GraniteMoeHybridForCausalLM(config), directory)


def parallel_mamba(directory: Path) -> None:
    """Falcon-H1: Mamba 2 beside attention in each layer."""
    config = transformers.FalconH1Config(
        **_DECODER, head_dim=64, mamba_n_heads=4, mamba_d_head=64, mamba_d_ssm=256, mamba_d_state=64, mamba_n_groups=1
    )  # fmt: skip
    _save(transformers.FalconH1ForCausalLM(config), directory)


def convolution(directory: Path) -> None:
    """LFM2: short convolutions and attention in turn. vLLM reads sizes that published configs alone state."""
    config = transformers.Lfm2Config(
        **_DECODER, layer_types=["conv", "full_attention"], conv_dim=128, block_dim=128
    )
    _save(transformers.Lfm2ForCausalLM(config), directory)


def mamba1(directory: Path) -> None:
    """Jamba: Mamba 1 and attention in turn, with experts."""
    config = transformers.JambaConfig(
        **_DECODER, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=2, num_experts_per_tok=1, mamba_d_state=16,
    )  # fmt: skip
    _save(transformers.JambaForCausalLM(config), directory)


def embedding(directory: Path) -> None:
    """BERT with the modules of sentence-transformers: pooling, then a Dense layer to 32 values, then normalization."""
    _save(transformers.BertModel(transformers.BertConfig(**_ENCODER)), directory)
    kinds = (
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
        ("3_Normalize", "Normalize"),
    )
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    _write(directory / "modules.json", modules)
    _write(directory / "sentence_bert_config.json", {"max_seq_length": 96, "do_lower_case": False})
    pooling = {"word_embedding_dimension": 128, "pooling_mode_mean_tokens": True}
    _write(directory / "1_Pooling" / "config.json", {**pooling, "pooling_mode_cls_token": False})
    dense = {"in_features": 128, "out_features": 32, "bias": True}
    activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
    _write(directory / "2_Dense" / "config.json", {**dense, **activation})
    tensors = {"linear.weight": torch.randn(32, 128), "linear.bias": torch.randn(32)}
    save_file(tensors, directory / "2_Dense" / "model.safetensors")


def reranker(directory: Path) -> None:
    """XLM-RoBERTa with one label, as BGE's rerankers are."""
    config = transformers.XLMRobertaConfig(**_ENCODER, num_labels=1)
    _save(transformers.XLMRobertaForSequenceClassification(config), directory)


def pictures(directory: Path) -> None:
    """Idefics 3: a SigLIP encoder in front of a Llama."""
    vision = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    text = {**_DECODER, "model_type": "llama"}
    config = transformers.Idefics3Config(
        text_config=text,
        vision_config=vision,
        image_token_id=WORDS - 4,
        scale_factor=2,
        pad_token_id=1,
    )
    _save(transformers.Idefics3ForConditionalGeneration(config), directory)
    tokenizer = _tokenizer(special)
    edge = {"longest_edge": 56}
    images = transformers.Idefics3ImageProcessorPil(size=edge, max_image_size=edge)
    template = (
        "{% for m in messages %}{% for c in m.content %}"
        "{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}"
    )
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=template
    )
    processor.save_pretrained(directory)


def adapter(directory: Path) -> None:
    """A LoRA adapter of `decoder`, of rank 32: more than vLLM admits by default."""
    directory.mkdir()
    base, tensors = "base_model.model.model.layers", {}
    for layer in range(2):
        name = f"{base}.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(_LORA_RANK, 128) / 4
        tensors[f"{name}.lora_B.weight"] = torch.randn(128, _LORA_RANK) / 4
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"r": _LORA_RANK, "lora_alpha": _LORA_RANK, "target_modules": ["q_proj"]}
    kind = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "decoder"}
    _write(directory / "adapter_config.json", {**kind, **settings})


def awq(directory: Path) -> None:
    """`decoder` with weights as AutoAWQ packs them: eight values of 4 bits in a word, groups of 64."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_DECODER))
    _save(model, directory, dtype=torch.float16)
    tensors = {}
    for name, value in model.state_dict().items():
        if "proj" not in name:
            tensors[name] = value
            continue
        stem, (outputs, inputs) = name.removesuffix(".weight"), value.shape
        for kind, rows in ("qweight", inputs), ("qzeros", inputs // 64):
            words = torch.randint(-(1 << 31), 1 << 31, (rows, outputs // 8), dtype=torch.int64)
            tensors[f"{stem}.{kind}"] = words.to(torch.int32)
        tensors[f"{stem}.scales"] = torch.full((inputs // 64, outputs), 0.03, dtype=torch.float16)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    stated = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,
        "version": "gemm",
    }
    config = json.loads((directory / "config.json").read_text())
    _write(directory / "config.json", {**config, "quantization_config": stated})


FAMILIES: Final[Mapping[str, Callable[[Path], None]]] = {
    each.__name__: each
    for each in (
        decoder, sliding, mixture, latent, mamba2, parallel_mamba, convolution, mamba1, embedding, reranker, pictures,
        adapter, awq,
    )
}  # fmt: skip


def _save(
    model: Any, directory: Path, *, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> None:
    model = model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(directory, **options)
    _tokenizer().save_pretrained(directory)


def _tokenizer(special: tuple[str, ...] = ()) -> transformers.PreTrainedTokenizerFast:
    """One token for each of the words `w0` to `w255`; the last may be special ones."""
    words = [*(f"w{i}" for i in range(WORDS - len(special))), *special]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", pad_token="w1", eos_token="w2", bos_token="w3",
        cls_token="w4", sep_token="w5", model_max_length=512, additional_special_tokens=list(special),
    )  # fmt: skip


def _write(path: Path, document: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2))


def main() -> None:
    wanted = sys.argv[2:] or FAMILIES
    for number, (name, make) in enumerate(FAMILIES.items()):
        if name in wanted:
            torch.manual_seed(number)
            make(Path(sys.argv[1]) / name)


if __name__ == "__main__":
    main()
