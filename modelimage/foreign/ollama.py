"""Ollama's images: one raw file per layer, named by its media type; the config is a container image's. Pure.

The model is GGUF, with its chat template and vocabulary in its own metadata. The other layers are Ollama's: a template
in Go's language, default parameters, a system prompt. Newer images with a layer for each tensor aren't supported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from modelimage.errors import InvalidImage
from modelimage.foreign.detect import OLLAMA_PREFIX, ForeignManifest
from modelimage.foreign.layer_values import Mapped, numbered, raw_layer, unique
from modelimage.model_facts import OLLAMA_PARAMETERS
from modelimage.record import Role

# Type -> file name if it is the only layer of its type, and role.
_FILES: Final = {
    "model": ("model.gguf", Role.WEIGHT),
    "projector": ("model.mmproj", Role.WEIGHT),
    "adapter": ("adapter.gguf", Role.WEIGHT),
    "template": ("ollama/template.gotmpl", Role.DOC),
    # The template's name before there were others.
    "prompt": ("ollama/prompt.gotmpl", Role.DOC),
    "params": (OLLAMA_PARAMETERS, Role.DOC),
    "system": ("ollama/system.txt", Role.DOC),
    "messages": ("ollama/messages.json", Role.DOC),
    "license": ("LICENSE", Role.DOC),
}
_TENSORS: Final = frozenset({"tensor", "json"})


def map_ollama(manifest: ForeignManifest, config: Mapping[str, Any]) -> Mapped:
    """Map an image's layers to files. Raises InvalidImage for a layer of unknown type."""
    # The config's diff_ids are those of raw files, whose digests the manifest states.
    contents = [_content(layer.kind) for layer in manifest.layers]
    totals, seen = Counter(contents), Counter[str]()
    layers = []
    for descriptor, content in zip(manifest.layers, contents, strict=True):
        seen[content] += 1
        name, role = _FILES[content]
        path = numbered(name, seen[content], totals[content])
        layers.append(raw_layer(descriptor, path, role))
    return Mapped(unique(layers), {})


def _content(media_type: str) -> str:
    content = media_type.removeprefix(OLLAMA_PREFIX)
    if content in _TENSORS:
        raise InvalidImage(
            "the Ollama image has a layer for each tensor, which no inference server loads",
            hint="Use the model's GGUF image, or its checkpoint on the Hub.",
        )
    if content not in _FILES:
        raise InvalidImage(f"not a layer of an Ollama image: {media_type!r:.120}")
    return content
