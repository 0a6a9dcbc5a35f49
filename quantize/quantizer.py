"""Quantizes a checkpoint directory: the package's entry point, used by the builder and the CLI.

Plans, runs the engine in a hidden directory beside the result, measures, and renames the result
into view once it is complete and durable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelimage.durable import check_space
from modelimage.installation import install_command
from quantize import engines, evaluate, output, rtn
from quantize.calibration import SAMPLES, load_calibration, load_evaluation
from quantize.checkpoint import Checkpoint, open_checkpoint
from quantize.evaluate import Evaluator
from quantize.plan import Plan, make_plan
from quantize.quality import Comparison, Gates, Quality
from quantize.rtn import Progress
from quantize.schemes import (
    Format,
    Method,
    QuantizationEngine,
    Scheme,
    resolve_engine,
    resolve_format,
    resolve_method,
)
from quantize.sqnr import DEFAULT_FLOOR, Energies, check_floor, summarize
from quantize.stages import OnStage, ignore_stage
from quantize.staging_dir import Staging, open_staging

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Comparison with the source: the text (None: the shipped one), the evaluator, and the required bounds."""

    gates: Gates = field(default_factory=Gates)
    text: Path | None = None
    evaluator: Evaluator = Evaluator.TRANSFORMERS


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """What to produce. None means the default of the scheme or the engine.

    `calibration`: a file of text, JSON lines or Parquet, of which `calibration_samples` are used; `min_sqnr` in dB;
    `threads` never changes the bytes that rtn writes.
    """

    scheme: Scheme
    format: Format | None = None
    engine: QuantizationEngine = QuantizationEngine.AUTO
    method: Method | None = None
    group_size: int | None = None
    calibration: Path | None = None
    calibration_samples: int | None = None
    min_sqnr: float | None = None
    threads: int | None = None
    evaluation: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """The result of a quantization. Sizes in bytes.

    `recipe` goes into the record (canonical JSON, no measurements); `quality` is the content of the quality artifact.
    """

    out: Path
    plan: Plan
    engine: QuantizationEngine
    recipe: Mapping[str, Any]
    quality: Quality
    source_bytes: int
    target_bytes: int
    notices: tuple[str, ...] = field(default=())


def plan_checkpoint(
    src: Path, options: QuantizeOptions
) -> tuple[Checkpoint, Plan, QuantizationEngine]:
    """Plan what `quantize_checkpoint` would do; reads headers only.

    Raises NotFound, InvalidCheckpoint and its subclasses, IncompatibleOptions.
    """
    # GPTQModel writes its own format only.
    calibrated = engines.gptq_installed() and options.format in (None, Format.GPTQ)
    engine = resolve_engine(options.scheme, options.engine, gptq_installed=calibrated)
    format_ = resolve_format(options.scheme, options.format, engine)
    checkpoint = open_checkpoint(src)
    plan = make_plan(
        checkpoint.config,
        checkpoint.shards,
        scheme=options.scheme,
        format_=format_,
        group_size=options.group_size,
    )
    return checkpoint, plan, engine


def check_checkpoint(
    src: Path, options: QuantizeOptions
) -> tuple[Checkpoint, Plan, QuantizationEngine]:
    """Plan, and check that this machine can run the plan.

    Raises EngineMissing, EngineFailed, and what `plan_checkpoint` raises.
    """
    checkpoint, plan, engine = plan_checkpoint(src, options)
    engines.check_installed(engine, os.environ)
    if options.evaluation is not None:
        evaluate.check_possible(options.evaluation.evaluator, plan)
    return checkpoint, plan, engine


def quantize_checkpoint(
    src: Path,
    out: Path,
    options: QuantizeOptions,
    progress: Progress | None = None,
    notify: Notify | None = None,
    on_stage: OnStage = ignore_stage,
) -> QuantizeResult:
    """Quantize `src` into the new directory `out`.

    `out` appears complete and durable, or not at all; the next run continues an interrupted one shard by shard.
    `progress` is called with (source bytes done, source bytes in all), `notify` with one sentence at a time,
    `on_stage` with what moves no bytes: calibrating and comparing. Raises
    what `check_checkpoint` raises, and BrokenWeights, QualityTooLow, EngineFailed, NoSpace, NotWritable, Busy.
    """
    # From headers alone: what can't work fails within a second.
    checkpoint, plan, engine = check_checkpoint(src, options)
    notices = _notices(options, engine)
    for notice in notices:
        if notify is not None:
            notify(notice)
    calibration = None
    if engine is not QuantizationEngine.RTN:
        samples = options.calibration_samples or SAMPLES
        calibration = load_calibration(options.calibration, samples)
    # Now rather than after hours of quantizing.
    check_space(out.absolute().parent, plan.target_bytes)
    method = resolve_method(plan.scheme, options.method, engine)
    threads = options.threads or rtn.default_threads()
    job = engines.EngineJob(checkpoint, plan, calibration, method, threads)
    # Everything up to `publish` happens in the hidden directory: `out` appears complete or not at all.
    with open_staging(out, _fingerprint(job, engine)) as staging:
        summary = summarize(_run(engine, job, staging, progress, on_stage))
        floor = DEFAULT_FLOOR[plan.scheme] if options.min_sqnr is None else options.min_sqnr
        # Checked before anything is published: a broken scale or axis must never leave the staging directory.
        check_floor(summary, floor)
        output.write_other_files(staging, checkpoint, plan)
        # Before publishing: a failed gate must leave no result.
        comparison = _compare(job, staging, options.evaluation, on_stage)
        written = sum(path.stat().st_size for path in staging.directory.glob("*.safetensors"))
        staging.publish()
    names = plan.scheme.value, plan.format.value, engine.value
    return QuantizeResult(
        out=out,
        plan=plan,
        engine=engine,
        recipe=_recipe(job, engine),
        quality=Quality(*names, summary, comparison),
        source_bytes=plan.source_bytes,
        target_bytes=written,
        notices=tuple(notices),
    )


def _compare(
    job: engines.EngineJob, staging: Staging, evaluation: Evaluation | None, on_stage: OnStage
) -> Comparison | None:
    if evaluation is None:
        return None
    text = load_evaluation(evaluation.text)
    pair = job.checkpoint.root, staging.directory
    found = evaluate.compare(*pair, job.plan, text, evaluation.evaluator, on_stage)
    evaluation.gates.check(
        found, variant=job.plan.scheme.value, calibrated=job.calibration is not None
    )
    return found


def _run(
    engine: QuantizationEngine,
    job: engines.EngineJob,
    staging: Staging,
    progress: Progress | None,
    on_stage: OnStage,
) -> Mapping[str, Energies]:
    if engine is QuantizationEngine.RTN:
        return rtn.convert_shards(
            job.checkpoint, job.plan, staging, threads=job.threads, progress=progress
        )
    return engines.run(engine, job, staging, on_stage)


def _notices(options: QuantizeOptions, engine: QuantizationEngine) -> list[str]:
    if options.engine is QuantizationEngine.AUTO_GPTQ:
        return ["auto-gptq is no longer maintained: using its successor GPTQModel (--engine gptq)."]
    if (
        options.engine is QuantizationEngine.AUTO
        and engine is QuantizationEngine.RTN
        and options.scheme is Scheme.INT4
    ):
        way = (
            "leave --format out" if engines.gptq_installed() else f"run: {install_command('gptq')}"
        )
        return [
            "INT4 by rounding to nearest costs small models much quality (perplexity x1.4 at 135 million "
            f"parameters, where calibrated INT4 costs x1.2). For calibrated INT4 {way}"
        ]
    return []


def _fingerprint(job: engines.EngineJob, engine: QuantizationEngine) -> str:
    # Everything that changes the bytes: a resumed run must not mix files of different options.
    parts = [output.fingerprint(job.checkpoint, job.plan), engine.value]
    parts += [job.method.value] if job.method else []
    if job.calibration is None:
        return " ".join([*parts, ""])
    return " ".join([*parts, str(job.calibration.digest), str(len(job.calibration.samples))])


def _recipe(job: engines.EngineJob, engine: QuantizationEngine) -> dict[str, Any]:
    return output.recipe(
        job.plan,
        engine=engine,
        method=job.method.value if job.method else None,
        calibration=job.calibration,
        versions=engines.versions(engine, os.environ),
        threads=job.threads,
    )
