"""A model's description in the Hub's API, made of what its image says: the record, `config.json` and the model card.

Pure. Stands in for the Hub's own, which has more members. Members keep the Hub's names; one that the files don't state
is left out. Clients decide by some: transformers finds Mistral's tokenizers by the tag `base_model:...`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from modelimage import canonical
from modelimage.errors import InvalidImage
from modelimage.model_card import parse_card, texts
from modelimage.record import Record

CARD: Final = "README.md"
CONFIG: Final = "config.json"
# Of these documents; what is longer states nothing.
MAX_DOCUMENT: Final = 1 << 20
_MOST_TEXTS: Final = 200
_MAX_TEXT: Final = 200
# A card's members that name other repositories, and the prefixes of their tags.
_TAGGED: Final = {"base_model": "base_model:", "datasets": "dataset:", "license": "license:"}
_PLAIN: Final = ("language", "tags")
_SINGLE: Final = ("pipeline_tag", "library_name", "base_model_relation", "license_name")


def description(record: Record, documents: Mapping[str, bytes]) -> dict[str, Any]:
    """The members beside the files' listing, from the contents of CARD and CONFIG where the model has them."""
    card = _card(documents.get(CARD, b""))
    config = _config(documents.get(CONFIG, b""))
    library = _first(card, "library_name") or ("transformers" if "model_type" in config else "")
    pipeline = _first(card, "pipeline_tag") or _pipeline(record, config)
    tags = [library, record.facts.format, str(config.get("model_type", "")), pipeline]
    stated = {
        "library_name": library,
        "pipeline_tag": pipeline,
        "cardData": card,
        "config": config,
        "tags": list(dict.fromkeys(tag for tag in (*tags, *_tags(card)) if tag)),
    }
    return {name: value for name, value in stated.items() if value}


def _card(data: bytes) -> dict[str, Any]:
    # Only texts and lists of them: YAML's aliases could make deeper members very large.
    known = parse_card(data[:MAX_DOCUMENT].decode(errors="replace"))
    found: dict[str, Any] = {}
    for name in (*_TAGGED, *_PLAIN, *_SINGLE):
        if values := [
            each for each in texts(known, name)[:_MOST_TEXTS] if 0 < len(each) <= _MAX_TEXT
        ]:
            found[name] = values if isinstance(known.get(name), list) else values[0]
    return found


def _config(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = {}
    with suppress(InvalidImage):
        # A longer document, cut behind the bound, isn't JSON and so states nothing.
        document = canonical.parse(data[: MAX_DOCUMENT + 1], what=CONFIG)
    kept: dict[str, Any] = {}
    architectures = document.get("architectures")
    if isinstance(architectures, list) and all(isinstance(each, str) for each in architectures):
        kept["architectures"] = architectures
    if isinstance(document.get("model_type"), str):
        kept["model_type"] = document["model_type"]
    method = document.get("quantization_config")
    if isinstance(method, dict) and isinstance(method.get("quant_method"), str):
        kept["quantization_config"] = {"quant_method": method["quant_method"]}
    return kept


def _pipeline(record: Record, config: Mapping[str, Any]) -> str:
    if record.facts.pooling:
        return "feature-extraction"
    architectures = config.get("architectures") or [record.facts.architecture]
    return "text-generation" if str(architectures[0]).endswith("ForCausalLM") else ""


def _first(card: Mapping[str, Any], name: str) -> str:
    return next(iter(texts(card, name)), "")


def _tags(card: Mapping[str, Any]) -> Iterator[str]:
    for name in _PLAIN:
        yield from islice(texts(card, name), _MOST_TEXTS)
    for name, prefix in _TAGGED.items():
        yield from (prefix + each for each in texts(card, name))
    relation = _first(card, "base_model_relation")
    if relation:
        yield from (f"base_model:{relation}:{each}" for each in texts(card, "base_model"))
