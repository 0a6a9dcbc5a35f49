"""What vLLM runs an architecture as, by its name: a model that generates, one that pools, or a draft.

Some bring adapters of their own, without which they don't hear or see. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

# Endings of architectures' names, in vLLM's order (`_SUFFIX_TO_DEFAULTS`), and whether these models pool.
_ENDINGS: Final[Mapping[str, bool]] = {
    "ForCausalLM": False, "ForConditionalGeneration": False, "ChatModel": False, "LMHeadModel": False,
    "ForTextEncoding": True, "EmbeddingModel": True, "ForSequenceClassification": True,
    "ForTokenClassification": True, "ForAudioClassification": True, "ForImageClassification": True,
    "ForVideoClassification": True, "ClassificationModel": True, "ForRewardModeling": True, "RewardModel": True,
    "Model": True,
}  # fmt: skip
# Architectures of vLLM's registry whose names end otherwise.
_POOLING: Final = frozenset({
    "BertForMaskedLM", "RobertaForMaskedLM", "ColPaliForRetrieval", "Terratorch", "HF_ColBERT", "JinaForRanking",
    "ColModernVBertForRetrieval", "ColQwen3", "ColQwen3_5", "ClefOmniForJointSchema", "JinaVLForRanking",
})  # fmt: skip
_GENERATING: Final = frozenset(
    {"ChatGLMModel", "MiDashengLMModel", "MossAudioModel", "Qwen2_5OmniModel", "UltravoxModel"}
)

# Models whose own LoRA adapters their publishers and vLLM's examples (offline_inference, audio and vision languages)
# have served with them.
_WITH_ADAPTERS: Final = frozenset({"Phi4MMForCausalLM", "GraniteSpeechForConditionalGeneration"})
_ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")

# What vLLM doesn't split into pipeline stages: classes without `SupportsPP` in its registry (0.32).
_WHOLE: Final = frozenset({
    "AriaForConditionalGeneration", "BertForMaskedLM", "BertForSequenceClassification",
    "BertForTokenClassification", "BertModel", "BertSpladeSparseEmbeddingModel", "BgeM3EmbeddingModel",
    "CLIPModel", "ColBERTJinaRobertaModel", "ColBERTLfm2Model", "ColBERTModernBertModel",
    "ColModernVBertForRetrieval", "DeepseekV4ForConditionalGeneration", "FireRedASR2ForConditionalGeneration",
    "GPT2ForSequenceClassification", "Gemma3TextModel", "Gemma3nForCausalLM", "Gemma3nForConditionalGeneration",
    "GteModel", "GteNewForSequenceClassification", "GteNewModel", "HF_ColBERT", "HrmTextForCausalLM",
    "IQuestLoopCoderForCausalLM", "Idefics3ForConditionalGeneration", "JinaForRanking", "Mamba2ForCausalLM",
    "ModernBertForSequenceClassification", "ModernBertForTokenClassification", "ModernBertModel",
    "NemotronParseForConditionalGeneration", "NomicBertModel", "OpenAIPrivacyFilterForTokenClassification",
    "PaddleOCRVLForConditionalGeneration", "Phi4MMForCausalLM", "RobertaForMaskedLM",
    "RobertaForSequenceClassification", "RobertaForTokenClassification", "RobertaModel", "SiglipModel",
    "SmolVLMForConditionalGeneration", "VoyageQwen3BidirectionalEmbedModel", "WhisperForConditionalGeneration",
    "XLMRobertaForSequenceClassification", "XLMRobertaForTokenClassification", "XLMRobertaModel",
    "Zamba2ForCausalLM",
})  # fmt: skip

# Drafts of speculative decoding, by the words that vLLM's registry names them with. Eagle 2.5 is a model.
_DRAFT: Final = re.compile(
    r"Eagle(?!2)|eagle|MTP(Model)?$|Draft|DSpark|DFlash|Medusa|Speculator|AssistantModel$|ExtractHiddenStates"
)


def pools(architecture: str, modules: object = None) -> bool:
    """Whether vLLM's runner is `pooling`: sentence-transformers with a pooling module, or by the architecture."""
    listed = modules if isinstance(modules, list) else []
    kinds = [each.get("type") for each in listed if isinstance(each, Mapping)]
    # The modules win: a pooling head on a decoder's architecture makes it an embedding model.
    if any(isinstance(kind, str) and kind.endswith(".Pooling") for kind in kinds):
        return True
    if architecture in _POOLING or architecture in _GENERATING or is_draft(architecture):
        return architecture in _POOLING
    return next((pools for end, pools in _ENDINGS.items() if architecture.endswith(end)), False)


def is_draft(architecture: str) -> bool:
    """Whether a model only proposes tokens for another one (speculative decoding), and answers nothing alone."""
    return _DRAFT.search(architecture) is not None


def has_stages(architecture: str) -> bool:
    """Whether several nodes, or GPUs, can each run some of a model's layers (pipeline parallelism)."""
    return architecture not in _WHOLE


def brings_adapters(architecture: str) -> bool:
    """Whether a model is meant to be served with the LoRA adapters that lie beside its weights."""
    return architecture in _WITH_ADAPTERS


def own_adapters(architecture: str, paths: Iterable[str]) -> tuple[str, ...]:
    """The folders of the adapters that a model is meant to be served with, sorted; "" is its root folder."""
    if not brings_adapters(architecture):
        return ()
    known = set(paths)
    folders = {path.rpartition("/")[0] for path in known}
    return tuple(
        folder
        for folder in sorted(folders)
        if all((f"{folder}/{name}" if folder else name) in known for name in _ADAPTER_FILES)
    )
