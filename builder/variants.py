"""Variants of a checkpoint: their names, and how quantized ones are made from the published one.

A variant is another checkpoint directory, made by `quantize` in the build directory and packed like any other.
Tokenizer, code and documents are those of the published variant, so their layer is shared.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from builder.classify import select
from builder.collect import CollectedCheckpoint, checked
from builder.layer_plan import SHARED_ROLES, PlannedFile
from builder.reporter import Progress, Reporter
from builder.sources.local import LocalSource
from modelimage import canonical
from modelimage.checkpoint_files import CONFIG, INDEX, WeightIndex, read_json
from modelimage.durable import reading, write_file, writing
from modelimage.errors import InvalidInput, UnknownVariant
from modelimage.quantization import DEFAULT_VARIANT, Variant, quantization_of
from modelimage.record import Role
from quantize.schemes import QuantizationEngine, Scheme, resolve_engine

if TYPE_CHECKING:
    from quantize.quality import Gates
    from quantize.quantizer import Evaluation, QuantizeOptions

ENGINES: Final = tuple(each.value for each in QuantizationEngine)
# Listed here instead of imported: `quantize.evaluate` needs numpy.
EVALUATORS: Final = ("transformers", "vllm")


@dataclass(frozen=True, slots=True)
class EvaluationChoices:
    """Comparison of a variant with the published weights: the text (None: the shipped one) and the bounds."""

    text: Path | None = None
    max_kl: float | None = None
    max_perplexity_ratio: float | None = None
    min_top1: float | None = None
    evaluator: str = EVALUATORS[0]


@dataclass(frozen=True, slots=True)
class QuantizeChoices:
    """How to make quantized variants. None: the engine's default."""

    engine: str = "auto"
    calibration: Path | None = None
    group_size: int | None = None
    evaluation: EvaluationChoices | None = None
    calibration_samples: int | None = None


@dataclass(frozen=True, slots=True)
class BuiltVariant:
    """A checkpoint of one precision, how it was made, and its quality document.

    `quantization` and `quality` are None for the published weights.
    """

    name: str
    checkpoint: CollectedCheckpoint
    quantization: Mapping[str, Any] | None = None
    quality: bytes | None = None


def chosen_variants(names: Sequence[str]) -> tuple[str, ...]:
    """The variants of a build: the published weights first, as the default, then the requested ones.

    Raises UnknownVariant.
    """
    for name in names:
        if name not in list(Variant):
            raise UnknownVariant(
                f"there is no variant {name!r:.80}",
                hint=f"Choose from {', '.join(Variant)}.",
            )
    return tuple(dict.fromkeys([DEFAULT_VARIANT, *names]))


def check_variants(
    published: CollectedCheckpoint, names: Sequence[str], choices: QuantizeChoices
) -> None:
    """Check from the headers that every quantized variant can be made, before anything is packed.

    Raises the errors of `quantize` for an unsuitable checkpoint, option or machine.
    """
    quantized = [name for name in names if name != DEFAULT_VARIANT]
    if not quantized:
        return
    from quantize.quantizer import check_checkpoint, plan_checkpoint  # noqa: PLC0415 - only this needs numba and numpy

    # Quantizers read one directory, but the files may be in several caches.
    view = _view(published)
    # All plans before the first look for a package: nobody should install one for what can't be made.
    for check in (plan_checkpoint, check_checkpoint):
        for name in quantized:
            check(view, _options(name, choices))


def check_choices(names: Sequence[str], choices: QuantizeChoices) -> None:
    """Check that each choice is for one of the variants, and that the engine makes every one, for any checkpoint.

    Raises InvalidInput, and IncompatibleOptions.
    """
    for option in _idle(names, choices):
        wanted = Variant.INT4 if option == "--group-size" else Variant.INT8
        raise InvalidInput(
            f"{option} has no effect on what is built: {', '.join(names)}",
            hint=f"Add a variant that it is for, such as --variant {wanted}, or leave {option} out.",
        )
    _check_engine(names, choices)


def _idle(names: Sequence[str], choices: QuantizeChoices) -> list[str]:
    """The options that were given and change none of the variants."""
    if choices.group_size is not None and Variant.INT4 not in names:
        return ["--group-size"]
    if set(names) - {DEFAULT_VARIANT}:
        return []
    given = {
        "--engine": choices.engine != ENGINES[0],
        "--calibration": choices.calibration is not None,
        "--calibration-samples": choices.calibration_samples is not None,
        "--evaluate": choices.evaluation is not None,
    }
    return [option for option, is_given in given.items() if is_given]


def _check_engine(names: Sequence[str], choices: QuantizeChoices) -> None:
    for name in names:
        if name != DEFAULT_VARIANT:
            engine = QuantizationEngine(choices.engine)
            resolve_engine(Scheme(name), engine, gptq_installed=False)


def check_suitable(
    config: Mapping[str, Any], names: Sequence[str], choices: QuantizeChoices
) -> None:
    """Check before weights are fetched that the model can be quantized, by its `config.json`, then for the packages.

    Raises InvalidCheckpoint and its subclasses, EngineMissing.
    """
    quantized = [name for name in names if name != DEFAULT_VARIANT]
    if not quantized:
        return
    from quantize import engines, evaluate  # noqa: PLC0415 - as above
    from quantize.architecture import check_config  # noqa: PLC0415 - as above

    check_config(config)
    engine = QuantizationEngine(choices.engine)
    # The unmaintained engine's successor writes the same.
    if engine is QuantizationEngine.AUTO_GPTQ:
        engine = QuantizationEngine.GPTQ
    engines.check_installed(engine, os.environ)
    if choices.evaluation is not None:
        evaluate.check_installed(evaluate.Evaluator(choices.evaluation.evaluator))


def published_name(published: CollectedCheckpoint) -> str:
    """The name of the published weights' variant: how they were quantized, such as `awq`, else the default."""
    return quantization_of(published.config).variant or DEFAULT_VARIANT


def quantized_variant(
    published: CollectedCheckpoint, name: str, choices: QuantizeChoices, reporter: Reporter
) -> BuiltVariant:
    """Make a quantized variant, or reuse one that an earlier run finished in the same build directory.

    Raises the errors of `quantize`, and InvalidCheckpoint.
    """
    out = published.build_dir.folder("variants") / f"{name}-{_choice_key(choices)}"
    made = _finished(out)
    # Quantizing takes minutes to hours: what an interrupted build finished is used again.
    if made is None:
        made = _quantize(_view(published), out, name, choices, reporter)
    _check_gates(made, choices.evaluation)
    return BuiltVariant(
        name, _merged(published, out), made["recipe"], canonical.to_bytes(made["quality"])
    )


def _choice_key(choices: QuantizeChoices) -> str:
    """A key of the choices that affect the result. Gates don't: they judge a result without changing it."""
    evaluation = choices.evaluation
    # Files by size, time and inode instead of their digest: this runs on every build.
    parts = [
        choices.engine,
        str(choices.group_size),
        f"{choices.calibration_samples} {_file_state(choices.calibration)}",
        f"{evaluation.evaluator} {_file_state(evaluation.text)}" if evaluation else "unmeasured",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _file_state(path: Path | None) -> str:
    if path is None:
        return "default"
    with reading(path):
        status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _notes_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def _finished(out: Path) -> dict[str, Any] | None:
    """The stored recipe and quality of a finished result. Written after the result, so both are complete or neither."""
    path = _notes_path(out)
    if not path.is_file():
        # A directory without its notes is an unfinished result: a run was interrupted.
        if out.is_dir():
            shutil.rmtree(out)
        return None
    return read_json(path, name=str(path))


def _quantize(
    source: Path, out: Path, name: str, choices: QuantizeChoices, reporter: Reporter
) -> dict[str, Any]:
    from quantize.quantizer import quantize_checkpoint  # noqa: PLC0415 - only this needs numba and numpy

    options = _options(name, choices)
    with reporter.progress(f"quantizing {name}") as progress:
        steps = Steps(progress)
        result = quantize_checkpoint(
            source, out, options, progress=steps, notify=reporter.say,
            on_stage=lambda stage: progress.stage(stage.name, stage.done, stage.total),
        )  # fmt: skip
    made = {"recipe": dict(result.recipe), "quality": result.quality.to_json()}
    path = _notes_path(out)
    # Written last: its existence marks the result as complete (see `_finished`).
    with writing(path):
        write_file(path, canonical.to_bytes(made))
    return made


def _options(name: str, choices: QuantizeChoices) -> QuantizeOptions:
    from quantize.quantizer import QuantizeOptions  # noqa: PLC0415 - as above

    return QuantizeOptions(
        scheme=Scheme(name),
        engine=QuantizationEngine(choices.engine),
        group_size=choices.group_size,
        calibration=choices.calibration,
        calibration_samples=choices.calibration_samples,
        evaluation=evaluation_of(choices.evaluation),
    )


def evaluation_of(choices: EvaluationChoices | None) -> Evaluation | None:
    """The engine's own options of a comparison."""
    from quantize.evaluate import Evaluator  # noqa: PLC0415 - as above
    from quantize.quantizer import Evaluation  # noqa: PLC0415 - as above

    if choices is None:
        return None
    return Evaluation(_gates(choices), choices.text, Evaluator(choices.evaluator))


def _gates(evaluation: EvaluationChoices) -> Gates:
    from quantize.quality import Gates  # noqa: PLC0415 - as above

    return Gates(evaluation.max_kl, evaluation.max_perplexity_ratio, evaluation.min_top1)


def _check_gates(made: Mapping[str, Any], evaluation: EvaluationChoices | None) -> None:
    """Check the bounds again: a reused result may have been checked against others."""
    from quantize.quality import Quality  # noqa: PLC0415 - as above

    quality = Quality.parse(canonical.to_bytes(made["quality"]))
    if evaluation is not None and quality.comparison is not None:
        calibrated = quality.engine != "rtn"
        _gates(evaluation).check(quality.comparison, variant=quality.scheme, calibrated=calibrated)


class Steps:
    """Shows the engine's reports of done and all bytes as increments, which a bar takes, and as steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        self._progress.advance(done - self._done)
        self._progress.stage("rounding", done, total)
        self._done = done


def _view(published: CollectedCheckpoint) -> Path:
    """The published files as one directory of links, whichever caches contain them."""
    folder = published.build_dir.folder("published")
    with writing(folder):
        for file in published.files:
            link = folder / file.path
            link.parent.mkdir(parents=True, exist_ok=True)
            # Renewed each time: a link from an earlier run may lead to a file that is gone.
            link.unlink(missing_ok=True)
            link.symlink_to(published.locations[file.path].resolve())
    return folder


def _merged(published: CollectedCheckpoint, out: Path) -> CollectedCheckpoint:
    """Combine the quantized weights and config with the published other files."""
    listing = LocalSource(out).list()
    sizes = {file.path: file.size for file in listing.files}
    roles = select(sizes).roles
    made = {path: role for path, role in roles.items() if role in (Role.WEIGHT, Role.CONFIG)}
    files = [PlannedFile(path, sizes[path], role) for path, role in made.items()]
    shards = next((each.shards for each in published.indexes if each.name == INDEX), None)
    # Published config files stay, except those that quantization replaced and the index of the published shards; so do
    # weights that it didn't read: those of modules in folders, and adapters beside the shards of an index.
    kept = [
        file
        for file in published.files
        if file.role in SHARED_ROLES
        or (file.role is Role.CONFIG and file.path not in made and file.path != INDEX)
        or (
            file.role is Role.WEIGHT
            and file.path not in made
            and ("/" in file.path or (shards is not None and file.path not in shards))
        )
    ]
    locations = {path: out / path for path in made}
    index = read_json(out / INDEX, name=INDEX) if INDEX in made else None
    return checked(
        [*files, *kept],
        {**{file.path: published.locations[file.path] for file in kept}, **locations},
        config=read_json(out / CONFIG, name=CONFIG),
        indexes=[
            *([WeightIndex.parse(index)] if index else []),
            *(each for each in published.indexes if "/" in each.name),
        ],
        claimed={},
        build_dir=published.build_dir,
        origins=published.origins,
    )
