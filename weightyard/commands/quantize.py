"""`weightyard quantize SRC OUT`: parses options, runs the engine, shows the result and its quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from builder.sources.datasets import calibration_file
from builder.variants import Steps, evaluation_of
from quantize.evaluate import Evaluator
from quantize.plan import Plan
from quantize.quality import Comparison
from quantize.quantizer import (
    QuantizeOptions,
    QuantizeResult,
    plan_checkpoint,
    quantize_checkpoint,
)
from quantize.schemes import Format, Method, QuantizationEngine, Scheme
from weightyard.advanced import AdvancedOption
from weightyard.console import Console, pass_console
from weightyard.evaluation_options import evaluation_options
from weightyard.options import Number, PathName, WholeNumber


def _choice(
    kind: type[Scheme] | type[Format] | type[QuantizationEngine] | type[Method] | type[Evaluator],
) -> click.Choice[str]:
    return click.Choice([member.value for member in kind])


_FILE = PathName()


@click.command()
@click.argument("source", metavar="SRC", type=_FILE)
@click.argument("out", metavar="OUT", type=_FILE)
@click.option("--scheme", type=_choice(Scheme), required=True, help="Target precision.")
@click.option(
    "--format", "format_", cls=AdvancedOption, type=_choice(Format), help="Checkpoint format."
)
@click.option(
    "--engine",
    type=_choice(QuantizationEngine),
    default="auto",
    help="Engine that quantizes.",
    show_default=True,
)
@click.option(
    "--method", cls=AdvancedOption, type=_choice(Method), help="Algorithm of llm-compressor."
)
@click.option("--group-size", type=WholeNumber(32), help="Number of INT4 weights per scale.")
@click.option(
    "--calibration",
    metavar="FILE|hf://ORG/NAME[/PATH]",
    help="Text, JSON lines or Parquet for calibrated engines, instead of the shipped text.",
)
@click.option(
    "--calibration-samples",
    cls=AdvancedOption,
    type=WholeNumber(1),
    metavar="N",
    help="Take the first N paragraphs, lines or rows of it.  [default: 128]",
)
@evaluation_options
@click.option(
    "--min-sqnr",
    cls=AdvancedOption,
    type=Number(),
    metavar="DB",
    help="Fail when a matrix has a lower signal-to-noise ratio, in dB.",
)
@click.option(
    "--threads",
    cls=AdvancedOption,
    type=WholeNumber(1),
    help="Worker processes; the result of rtn doesn't depend on them.",
)
@click.option(
    "--quality", "quality_file", type=_FILE, metavar="FILE", help="Write the quality document here."
)
@click.option("--dry-run", is_flag=True, help="Show the plan, from the headers alone.")
@pass_console
def quantize(console: Console, /, *, source: Path, out: Path, dry_run: bool, **given: Any) -> None:
    """Make an INT8 or INT4 checkpoint OUT from the 16-bit checkpoint SRC.

    OUT appears when it is complete. The next run continues an interrupted one.
    """
    options = _options(given)
    _, plan, engine = plan_checkpoint(source, options)
    if dry_run:
        console.result(_plan_document(plan, engine), _plan_text(plan, engine))
        return
    with console.resumable(), console.progress(f"quantizing {source.name}", plan.work_bytes) as bar:
        result = quantize_checkpoint(
            source, out, options, Steps(bar), console.say,
            lambda stage: bar.stage(stage.name, stage.done, stage.total),
        )  # fmt: skip
    if given["quality_file"] is not None:
        given["quality_file"].write_bytes(result.quality.to_bytes())
    console.result(_result_document(result), _result_text(result))


def _options(given: dict[str, Any]) -> QuantizeOptions:
    return QuantizeOptions(
        scheme=Scheme(given["scheme"]),
        format=Format(given["format_"]) if given["format_"] else None,
        engine=QuantizationEngine(given["engine"]),
        method=Method(given["method"]) if given["method"] else None,
        group_size=given["group_size"],
        calibration=calibration_file(given["calibration"]) if given["calibration"] else None,
        calibration_samples=given["calibration_samples"],
        min_sqnr=given["min_sqnr"],
        threads=given["threads"],
        evaluation=evaluation_of(given["evaluation"]),
    )


def _plan_document(plan: Plan, engine: QuantizationEngine) -> dict[str, Any]:
    return {
        "architecture": plan.architecture,
        "scheme": plan.scheme.value,
        "format": plan.format.value,
        "engine": engine.value,
        "groupSize": plan.group or None,
        "quantizedMatrices": plan.quantized,
        "kept": dict(sorted(plan.kept.items())),
        "sourceBytes": plan.source_bytes,
        "targetBytes": plan.target_bytes,
    }


def _plan_text(plan: Plan, engine: QuantizationEngine) -> str:
    group = f", group {plan.group}" if plan.group else ""
    lines = [
        f"{plan.architecture} as {plan.scheme.value} ({plan.format.value}{group}) by {engine.value}",
        f"{plan.quantized} matrices quantized: "
        f"{plan.source_bytes / 1e6:,.1f} MB become {plan.target_bytes / 1e6:,.1f} MB",
    ]
    return "\n".join([*lines, *_kept_text(plan)])


def _kept_text(plan: Plan) -> list[str]:
    """What stays in 16 bits, by reason, with the first name and the number of others."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in sorted(plan.kept.items()):
        by_reason.setdefault(reason, []).append(name)
    return [
        f"left in 16 bits, {reason}: {names[0]}"
        + (f" and {len(names) - 1} more" if names[1:] else "")
        for reason, names in sorted(by_reason.items())
    ]


def _result_document(result: QuantizeResult) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "recipe": dict(result.recipe),
        "quality": result.quality.to_json(),
        "sourceBytes": result.source_bytes,
        "targetBytes": result.target_bytes,
    }


def _result_text(result: QuantizeResult) -> str:
    sqnr = result.quality.sqnr
    lines = [
        _plan_text(result.plan, result.engine),
        f"signal to noise {sqnr.mean:.1f} dB, at least {sqnr.worst:.1f} dB ({sqnr.worst_module})",
    ]
    if result.quality.comparison is not None:
        lines.append(_comparison_text(result.quality.comparison))
    return "\n".join([*lines, f"wrote {result.out}"])


def _comparison_text(found: Comparison) -> str:
    return (
        f"perplexity ratio {found.perplexity_ratio:.3f}, KL divergence {found.kl_divergence:.4f}, "
        f"top-1 agreement {found.top1_agreement:.3f} over {found.tokens} tokens"
    )
