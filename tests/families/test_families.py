"""A tiny random model of each family is built, pulled and served by vLLM with the planned command, beside another
server with the same command on the source directory. Both answer the same.

A model that the product misreads fails here: a file that isn't packed, a length or rank that vLLM refuses, a runner
that doesn't fit, weights that a quantized variant packs differently than `weightyard quantize` writes them. `make test`
serves some of the families, `make test-families` all.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.families.product import Planned, Product, Refused, weightyard
from tests.servers.cpu import serves
from tests.servers.process import child_environment
from tests.servers.vllm_forks import ForkedServer, VllmForks

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

MAKER: Final = Path(__file__).with_name("checkpoints.py")
PROMPTS: Final = ("w7 w8 w9", "w100 w30 w12 w200 w17 w18 w19", "w42")

# Tokens, and numbers that agree to a rounding.
Answer = tuple[list[str], list[float]]
Ask = Callable[[ForkedServer], Answer]


@pytest.fixture(scope="module")
def forks() -> Iterator[VllmForks]:
    with VllmForks() as program:
        yield program


@pytest.fixture(scope="module")
def checkpoints(forks: VllmForks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the checkpoint of each family, by name. Made while `forks` imports vLLM."""
    made = tmp_path_factory.mktemp("checkpoints")
    done = subprocess.run(
        [sys.executable, str(MAKER), str(made)], env=child_environment(made.parent, HF_HUB_OFFLINE="1"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    directory = tmp_path_factory.mktemp("product")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTYARD_ROOT", str(directory / "cache"))
        yield Product(directory)


def complete(server: ForkedServer, model: str = "tiny") -> Answer:
    """Greedy completions, and the log probabilities of their tokens."""
    tokens: list[str] = []
    numbers: list[float] = []
    for prompt in PROMPTS:
        body = {
            "model": model,
            "prompt": prompt,
            "temperature": 0,
            "max_tokens": 8,
            "ignore_eos": True,
        }
        (choice,) = server.post("/v1/completions", {**body, "logprobs": 1})["choices"]
        tokens += choice["logprobs"]["tokens"]
        numbers += choice["logprobs"]["token_logprobs"]
    assert len(tokens) == 8 * len(PROMPTS)
    return tokens, numbers


def adapted(server: ForkedServer) -> Answer:
    """The adapter's answers, which aren't the base's."""
    found = complete(server, "mine")
    assert found != complete(server)
    return found


def embed(server: ForkedServer) -> Answer:
    """Embeddings, as long as the Dense layer makes them."""
    body = {"model": "tiny", "input": list(PROMPTS)}
    vectors = [each["embedding"] for each in server.post("/v1/embeddings", body)["data"]]
    assert {len(vector) for vector in vectors} == {32}
    return [], [value for vector in vectors for value in vector]


def rank(server: ForkedServer) -> Answer:
    body = {"model": "tiny", "query": PROMPTS[0], "documents": list(PROMPTS)}
    results = server.post("/rerank", body)["results"]
    return [str(each["index"]) for each in results], [each["relevance_score"] for each in results]


def describe(server: ForkedServer) -> Answer:
    """The answer to a picture, which isn't that to another."""
    found = [_describe(server, shade) for shade in (20, 200)]
    assert found[0] != found[1]
    return [word for text in found for word in text.split()], []


def _describe(server: ForkedServer, shade: int) -> str:
    from PIL import Image  # noqa: PLC0415 - installed with vLLM only

    file = io.BytesIO()
    Image.linear_gradient("L").resize((56, 56)).point(lambda value: (value * shade) // 255).save(
        file, "PNG"
    )
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": PROMPTS[0]},
    ]
    messages = [{"role": "user", "content": content}]
    body = {
        "model": "tiny",
        "messages": messages,
        "temperature": 0,
        "max_tokens": 8,
        "ignore_eos": True,
    }
    return str(server.post("/v1/chat/completions", body)["choices"][0]["message"]["content"])


def _answer(forks: VllmForks, planned: Planned, command: tuple[str, ...], ask: Ask) -> Answer:
    # One after the other: vLLM binds each server's threads to the same cores, where it waits by polling.
    with forks.server(command, planned.environment) as server:
        server.wait_until_healthy()
        return ask(server)


def compare(forks: VllmForks, planned: Planned, ask: Ask, *sources: Path) -> None:
    """The planned server answers as one on the source directories does."""
    tokens, numbers = _answer(forks, planned, planned.command, ask)
    expected_tokens, expected_numbers = _answer(forks, planned, planned.on(*sources), ask)
    assert tokens == expected_tokens
    assert numbers == pytest.approx(expected_numbers, abs=1e-4)
    assert len({*tokens, *(round(number, 3) for number in numbers)}) > 2, (
        "a model that says nothing"
    )


NIGHTLY: Final = pytest.mark.families


@pytest.mark.parametrize(
    ("family", "ask"),
    [
        ("latent", complete), ("embedding", embed),
        *(
            pytest.param(*each, marks=NIGHTLY)
            for each in (
                ("reranker", rank), ("pictures", describe), ("convolution", complete), ("mixture", complete),
                ("decoder", complete), ("sliding", complete), ("mamba2", complete), ("parallel_mamba", complete),
            )
        ),
    ],
)  # fmt: skip
def test_answers_as_from_its_source(
    forks: VllmForks, checkpoints: Path, product: Product, family: str, ask: Ask
) -> None:
    source = checkpoints / family
    compare(forks, product.plan(product.build(source, family)), ask, source)


def test_an_adapter_of_rank_32_answers_as_from_its_source(
    forks: VllmForks, checkpoints: Path, product: Product
) -> None:
    base, adapter = checkpoints / "decoder", checkpoints / "adapter"
    images = product.build(base, "base"), product.build(adapter, "adapter")
    planned = product.plan(images[0], adapters=[{"name": "mine", "image": images[1]}])
    compare(forks, planned, adapted, base, adapter)


@NIGHTLY
def test_our_int8_answers_as_what_the_quantizer_writes(
    forks: VllmForks, checkpoints: Path, product: Product
) -> None:
    source, written = checkpoints / "decoder", product.directory / "written"
    weightyard("quantize", str(source), str(written), "--scheme", "int8", "--engine", "rtn")
    image = product.build(source, "int8", "--variant", "int8", "--engine", "rtn")
    compare(forks, product.plan(image, variant="int8"), complete, written)


@NIGHTLY
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_published_quantization_answers_as_from_its_source_or_is_refused(
    forks: VllmForks, checkpoints: Path, product: Product, method: str
) -> None:
    source = checkpoints / method
    if method == "gptq":
        options = ("--scheme", "int4", "--format", "gptq", "--engine", "rtn", "--group-size", "64")
        weightyard("quantize", str(checkpoints / "decoder"), str(source), *options)
    image = product.build(source, method)
    if serves("int4"):
        compare(forks, product.plan(image), complete, source)
        return
    with pytest.raises(Refused, match="AVX-512"):
        product.plan(image)


def test_layers_without_kernels_are_refused(checkpoints: Path, product: Product) -> None:
    """vLLM would start, and end at the first request."""
    image = product.build(checkpoints / "mamba1", "mamba1")
    with pytest.raises(Refused, match="Mamba 1"):
        product.plan(image)
