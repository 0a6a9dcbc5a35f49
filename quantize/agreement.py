"""Token-by-token agreement of two models' predictions, as measured by both evaluators.

Independent of where the models come from and which library runs them; needs torch.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from transformers import AutoTokenizer

from modelimage.errors import InvalidInput
from quantize.calibration import Calibration
from quantize.quality import Comparison

WINDOW: Final = 512  # tokens
MIN_TOKENS: Final = 64


class Totals(NamedTuple):
    """Sums over positions: negative log-likelihoods, divergence, agreements, and the number of positions."""

    source_nll: float = 0.0
    quantized_nll: float = 0.0
    divergence: float = 0.0
    agreed: float = 0.0
    positions: float = 0.0

    def plus(self, other: Totals) -> Totals:
        return Totals(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def measure(reference: Any, subject: Any, following: Any) -> Totals:
    """Sums over one window: logits [positions, vocabulary] of both models, and the token that follows each position."""
    # float32: in bf16 the differences of log-likelihoods would be lost.
    expected = torch.log_softmax(reference.float(), dim=-1)
    found = torch.log_softmax(subject.float(), dim=-1)
    divergence = (expected.exp() * (expected - found)).sum()
    agreed = (expected.argmax(-1) == found.argmax(-1)).sum()
    return Totals(
        -float(expected.gather(1, following[:, None]).sum()),
        -float(found.gather(1, following[:, None]).sum()),
        float(divergence),
        float(agreed),
        float(len(following)),
    )


def comparison(
    totals: Totals, text: Calibration, evaluator: str, libraries: Sequence[str]
) -> Comparison:
    """Means over all positions. Raises OverflowError when a likelihood exceeds the range of a float."""
    count = totals.positions
    return Comparison(
        perplexity_ratio=math.exp((totals.quantized_nll - totals.source_nll) / count),
        kl_divergence=totals.divergence / count,
        top1_agreement=totals.agreed / count,
        source_perplexity=math.exp(totals.source_nll / count),
        tokens=int(count),
        text=text.digest,
        evaluator=evaluator,
        versions={name: importlib.metadata.version(name) for name in libraries},
    )


def windows(source: Path, text: Calibration) -> Iterator[list[int]]:
    """The text's token ids, WINDOW at a time. Raises InvalidInput for text that is too short."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    # Without the tokenizer's special tokens: the text is one stream, and a window may begin anywhere in it.
    ids: list[int] = tokenizer("\n\n".join(text.samples), add_special_tokens=False)["input_ids"]
    if len(ids) < MIN_TOKENS:
        raise InvalidInput(f"the evaluation text has {len(ids)} tokens, below {MIN_TOKENS}")
    # The last token has no successor to predict.
    for start in range(0, len(ids) - 1, WINDOW):
        yield ids[start : start + WINDOW]
