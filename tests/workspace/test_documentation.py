"""docs/workspace.md says what the code does: its tables of memory, of GPUs and of fields are recomputed here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from modelimage.gpu_memory import estimate
from modelimage.record import ModelFacts
from workspace import crd
from workspace.controller.reasons import Reason
from workspace.fit import Demand, choose
from workspace.hardware import GPUS, Hardware

PAGE = (Path(__file__).parents[2] / "docs" / "workspace.md").read_text()
GIB = 1 << 30


@dataclass(frozen=True)
class Model:
    """A published model: its safetensors' bytes, and what its config.json says."""

    name: str
    weight_bytes: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    inner: int
    vocabulary: int
    context: int

    @property
    def facts(self) -> ModelFacts:
        config = {
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "hidden_size": self.hidden,
            "intermediate_size": self.inner, "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context, "torch_dtype": "bfloat16",
        }  # fmt: skip
        found = estimate(config, [_Tensor(self.weight_bytes // 2)])
        return ModelFacts(
            weight_bytes=found.weight_bytes,
            kv_cache_bytes_per_token=found.kv_cache_bytes_per_token,
            gpu_memory_bytes=found.gpu_memory_bytes(),
            context_length=found.context_length,
        )


@dataclass(frozen=True)
class _Tensor:
    values: int
    name: str = "model.weight"
    dtype: str = "BF16"

    @property
    def shape(self) -> tuple[int]:
        return (self.values,)


MODELS = (
    Model("Qwen2.5-7B", 15_231_233_024, 28, 28, 4, 3584, 18944, 152064, 32768),
    Model("Llama-3.1-8B", 16_060_522_496, 32, 32, 8, 4096, 14336, 128256, 131072),
    Model("Qwen2.5-32B", 65_527_752_704, 64, 40, 8, 5120, 27648, 152064, 32768),
    Model("Llama-3.1-70B", 141_107_412_992, 80, 64, 8, 8192, 28672, 128256, 131072),
)
CARDS = ("A10", "A100-80GB", "H100")


def our_gpus(model: Model, card: str) -> tuple[int, int]:
    """GPUs and context that the planner chooses for bf16."""
    fit = choose({"bf16": model.facts}, Hardware(GPUS[card], 8), Demand())
    return fit.gpus, fit.context or 0


def kaito_gpus(model: Model, card: str) -> int:
    """KAITO's node estimator (pkg/workspace/estimator/budget.go): 1.02 of the weights, 2.3 GiB (A10: 1.5) and 5% of
    the weights of overhead, in 92% (A10: 82%) of the GPU."""
    base, utilization = (1.5, 0.82) if card == "A10" else (2.3, 0.92)
    weights = 1.02 * model.weight_bytes
    room = utilization * GPUS[card].memory_bytes - base * GIB
    return math.ceil(1.05 * weights / room)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = PAGE.partition(f"# {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_memory_table_is_what_both_formulas_give() -> None:
    expected = []
    for model in MODELS:
        for card in CARDS:
            gpus, context = our_gpus(model, card)
            expected.append(
                [model.name, card, str(gpus), f"{context:,}", str(kaito_gpus(model, card))]
            )
    assert rows("Compared with KAITO") == expected


def test_every_known_gpu_stands_in_the_table() -> None:
    expected = [
        [
            gpu.name,
            f"{gpu.memory_bytes / GIB:g}",
            f"{gpu.capability / 10:.1f}" if gpu.capability else "-",
        ]
        for gpu in GPUS.values()
    ]
    assert rows("GPUs") == expected


def test_every_field_and_condition_is_explained() -> None:
    properties = crd.spec_schema()["properties"]
    for name, schema in properties.items():
        for inner in schema.get("properties", {}):
            assert f"`{name}.{inner}`" in PAGE, f"{name}.{inner}"
        assert f"`{name}" in PAGE, name
    for condition in crd.CONDITIONS:
        assert re.search(rf"^\| {condition} \|", PAGE, re.MULTILINE), condition


def test_the_reasons_table_is_the_closed_list() -> None:
    assert rows("Reasons") == [[f"`{each}`", each.meaning] for each in Reason]
