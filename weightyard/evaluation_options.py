"""The options of `build` and `quantize` that compare quantized weights with what they were made from."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from builder.variants import EVALUATORS, EvaluationChoices
from weightyard.advanced import AdvancedOption
from weightyard.options import Number, PathName

R = TypeVar("R")


def evaluation_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds `--evaluate` and its details, passed as the keyword `evaluation: EvaluationChoices | None`.

    Any detail implies `--evaluate`.
    """

    @click.option(
        "--evaluate",
        is_flag=True,
        help="Compare predictions with the unquantized weights', on a fixed text, for the quality document.",
    )
    @click.option(
        "--evaluator",
        cls=AdvancedOption,
        type=click.Choice(EVALUATORS),
        default=EVALUATORS[0],
        show_default=True,
        help="Runs the compared models; vllm needs variants that it serves on this machine.",
    )
    @click.option(
        "--evaluation-text",
        cls=AdvancedOption,
        type=PathName(exists=True, dir_okay=False),
        metavar="FILE",
        help="Text to compare on, instead of the shipped one; implies --evaluate.",
    )
    @click.option(
        "--max-kl",
        type=Number(min=0),
        help="Fail above this KL divergence in nats; implies --evaluate.",
    )
    @click.option(
        "--max-ppl-ratio",
        cls=AdvancedOption,
        type=Number(min=0),
        help="Fail above this perplexity ratio; implies --evaluate.",
    )
    @click.option(
        "--min-top1",
        cls=AdvancedOption,
        type=Number(min=0, max=1),
        help="Fail below this top-1 agreement; implies --evaluate.",
    )
    @wraps(command)
    def with_evaluation(
        *args: Any,
        evaluate: bool,
        evaluator: str,
        evaluation_text: Path | None,
        max_kl: float | None,
        max_ppl_ratio: float | None,
        min_top1: float | None,
        **kwargs: Any,
    ) -> R:
        choices = EvaluationChoices(evaluation_text, max_kl, max_ppl_ratio, min_top1, evaluator)
        # By value: a detail that is given with its default implies nothing.
        wanted = evaluate or choices != EvaluationChoices()
        return command(*args, evaluation=choices if wanted else None, **kwargs)

    return with_evaluation
