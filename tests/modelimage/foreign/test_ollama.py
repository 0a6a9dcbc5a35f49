"""Ollama's images, made by hand: a layer for the model and one for each thing that Ollama keeps beside it."""

from __future__ import annotations

import pytest

from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidImage
from modelimage.foreign import ForeignModel, ImageFormat
from tests.modelimage.foreign.describing import check_pull, described
from tests.modelimage.foreign.images import DOCKER_CONFIG, Maker

OLLAMA = "application/vnd.ollama.image"


def ollama(maker: Maker, layers: list[Descriptor]) -> ForeignModel:
    config = {
        "model_format": "gguf",
        "model_family": "llama",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
    }
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    maker.manifest(maker.json(DOCKER_CONFIG, config), layers, mediaType=kind)
    return described(maker)


def test_an_ollama_image(maker: Maker) -> None:
    layers = [
        maker.blob(f"{OLLAMA}.model", b"GGUF weights"),
        maker.blob(f"{OLLAMA}.projector", b"GGUF eyes"),
        maker.blob(f"{OLLAMA}.adapter", b"GGUF lora"),
        maker.blob(f"{OLLAMA}.template; name=default", b"{{ .Prompt }}"),
        maker.blob(f"{OLLAMA}.params", b'{"temperature":0.6}'),
        maker.blob(f"{OLLAMA}.system", b"Be brief."),
        maker.blob(f"{OLLAMA}.messages", b"[]"),
        maker.blob(f"{OLLAMA}.license", b"MIT"),
        maker.blob(f"{OLLAMA}.license", b"and BSD"),
    ]
    model = ollama(maker, layers)
    assert model.kind is ImageFormat.OLLAMA
    check_pull(
        maker,
        model,
        {
            "model.gguf": b"GGUF weights",
            "model.mmproj": b"GGUF eyes",
            "adapter.gguf": b"GGUF lora",
            "ollama/template.gotmpl": b"{{ .Prompt }}",
            "ollama/params.json": b'{"temperature":0.6}',
            "ollama/system.txt": b"Be brief.",
            "ollama/messages.json": b"[]",
            "LICENSE-00001-of-00002": b"MIT",
            "LICENSE-00002-of-00002": b"and BSD",
        },
    )


def test_an_ollama_model_in_parts(maker: Maker) -> None:
    layers = [maker.blob(f"{OLLAMA}.model", data) for data in (b"one", b"two")]
    files = {"model-00001-of-00002.gguf": b"one", "model-00002-of-00002.gguf": b"two"}
    check_pull(maker, ollama(maker, layers), files)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("tensor; name=blk.0; dtype=BF16", "a layer for each tensor"),
        ("json", "a layer for each tensor"),
        ("something.new", "not a layer of an Ollama image"),
    ],
)
def test_an_ollama_image_with_a_layer_that_is_not_supported(
    maker: Maker, content: str, said: str
) -> None:
    layers = [maker.blob(f"{OLLAMA}.model", b"w"), maker.blob(f"{OLLAMA}.{content}", b"x")]
    with pytest.raises(InvalidImage, match=said):
        ollama(maker, layers)
